"""The program of a worker: `python -m gateway.workers INDEX CHANNEL`, started by its supervisor alone."""

from __future__ import annotations

import socket
import sys

from gateway.workers.worker import receive


def main(channel: int) -> int:
    """Serve as a worker until told to stop; return the exit code."""
    charged = receive(socket.socket(fileno=channel))
    from gateway.serving import serve  # noqa: PLC0415  # takes long to import; first it is to be no orphan

    return serve(charged.settings, charged)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[2])))
