"""The asyncio shell around `fanout`: settings, logs, transports, publish API, command line."""
