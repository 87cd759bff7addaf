"""AMQP 0-9-1 as the gateway needs it: fast for events, by the book for all else."""
