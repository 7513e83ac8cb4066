"""The address that a service listens on."""

from __future__ import annotations

import socket

from service.errors import PortTaken


def open_socket(host: str, port: int) -> socket.socket:
    """Return a bound socket that does not listen yet: until a model is loaded, connections are refused at once.

    Raises:
        PortTaken: the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((host, port))
    except OSError as exc:
        opened.close()
        raise PortTaken(f"port {host}:{port}", found=exc.strerror, expected="a free port") from exc
    opened.setblocking(False)
    return opened
