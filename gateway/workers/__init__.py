"""Several processes of one machine that serve one port: the workers of a gateway, and their supervisor."""
