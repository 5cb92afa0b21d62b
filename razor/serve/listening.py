"""What everything that listens on a port has in common: is the port free, who can reach it, when does it end."""

from __future__ import annotations

import errno
import ipaddress
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from razor.errors import RazorError


def check_address(host: str, port: int) -> None:
    """Check that a port can be listened on, before a model is loaded.

    Raises:
        RazorError: no port, a taken or a forbidden one, or an address that is none of this machine's.
    """
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
        raise RazorError(f"port='{port}' must be a whole number in 0..65535 (0: any free one).")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        code = getattr(error, "errno", None)
        if code == errno.EADDRINUSE:
            raise RazorError(
                f"port={port} of host={host} is taken: choose another, or 0 for any free."
            ) from error
        if code in (errno.EACCES, errno.EPERM):
            raise RazorError(f"port={port} needs more rights than you have: choose one from 1024.") from error
        raise RazorError(f"host='{host}' is no address of this machine ({error}): try 127.0.0.1.") from error


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def warn_if_open(host: str, protected: bool = False) -> None:
    """Say on stderr that others can reach this, where they can."""
    if not is_local(host):
        who = "who has the key" if protected else "on the network, without a password"
        print(f"razor: host={host}: whoever reaches this port, {who}, can use the model.", file=sys.stderr)


@contextmanager
def until_told() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set.

    The second signal, which may come while things are being closed, does what it did before; so do all at the end.
    """
    told = threading.Event()

    def tell(*_: object) -> None:
        told.set()
        give_back()

    def give_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in numbers}
    for number in before:
        signal.signal(number, tell)
    try:
        yield told
    finally:
        give_back()


def wait(told: threading.Event) -> None:
    """Wait for the event, without being deaf to signals where a wait without end would be (Windows)."""
    while not told.wait(1.0):
        pass
