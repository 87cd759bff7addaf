"""Requests: work that clients hand in for workers, each known by its token; see docs/protocol.md."""
