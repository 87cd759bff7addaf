"""Limits that need no identity: of connections by address, of those that ask for nothing, of memory."""
