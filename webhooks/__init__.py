"""Webhook delivery: the same events, pushed to endpoints. The gateway does not use it yet."""
