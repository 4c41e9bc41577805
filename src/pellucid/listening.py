"""The socket that the server listens on: bound before anything slow, with honest refusals."""

from __future__ import annotations

import contextlib
import errno
import os
import socket

from pellucid.errors import AddressUnavailable, PortTaken

_BACKLOG = 2048  # clients that may knock before the first answer; uvicorn's own figure
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 lets the system choose. Raises PortTaken, AddressUnavailable."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise AddressUnavailable(host=host, port=port, reason=error.strerror or error) from error
    # `localhost` often names ::1 first, while its callers say 127.0.0.1.
    family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere it would let two servers share one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(host=host, port=port, holder=port_holder(port)) from error
        raise AddressUnavailable(host=host, port=port, reason=error.strerror or error) from error
    return listener


def allow_open_files(count: int) -> None:
    """Raise this process's own limit to ``count`` open files, as far as the system lets it."""
    if os.name != "posix":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def port_holder(port: int) -> str:
    """Who listens on ``port`` of this machine, as far as this user may know."""
    import psutil

    holder = "another process"
    with contextlib.suppress(psutil.Error, OSError):  # other users' processes may be hidden
        for connection in psutil.net_connections(kind="tcp"):
            listens = connection.status == psutil.CONN_LISTEN
            if listens and connection.laddr.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    return holder


def base_url(host: str, port: int) -> str:
    """Where a client on this machine finds the server."""
    shown = _ANY_ADDRESS.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"
