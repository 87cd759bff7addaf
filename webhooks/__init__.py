"""Webhook delivery: the same events, pushed to endpoints. Nothing here yet."""
