"""The socket on which the pages are served."""

from __future__ import annotations

import socket

from costl.demo.security import HOST
from costl.pipeline.errors import UsageError


def open_socket(port: int) -> socket.socket:
    """A socket that listens on a port of this machine, 0 for any free one. Raises UsageError if the port is in use."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise UsageError(
            f"port {port} of {HOST} cannot be used ({error.strerror}). Choose another with --port, or 0 for any."
        ) from error
    listener.listen()  # a browser may connect before the server runs; its request then waits
    return listener
