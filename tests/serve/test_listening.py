"""Ports, addresses, and being told to stop."""

from __future__ import annotations

import os
import signal
import socket
import threading

import pytest

from razor.errors import RazorError
from razor.serve.listening import check_address, is_local, until_told, wait, warn_if_open


def test_a_taken_port_is_said_and_a_free_one_stays_free() -> None:
    with socket.socket() as ours:  # has the port, so that nobody else gets it, and lets others have it too
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        ours.bind(("127.0.0.1", 0))
        port = ours.getsockname()[1]
        check_address("127.0.0.1", port)
        check_address("127.0.0.1", port)
        ours.listen()  # which would fail, were the port in use
        with pytest.raises(RazorError, match=f"port={port} of host=127.0.0.1 is taken"):
            check_address("127.0.0.1", port)
    check_address("0.0.0.0", 0)


@pytest.mark.parametrize("port", [-1, 65536, "8080", 80.0, True, None])
def test_no_port(port: object) -> None:
    with pytest.raises(RazorError, match="must be a whole number"):
        check_address("127.0.0.1", port)  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid", "a b"])
def test_no_address_of_this_machine(host: str) -> None:
    with pytest.raises(RazorError, match=f"host='{host}' is no address of this machine"):
        check_address(host, 0)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.9.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("::", False),
        ("box", False),
    ],
)
def test_who_can_reach_it(host: str, local: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert is_local(host) is local
    warn_if_open(host)
    said = capsys.readouterr().err
    assert (said == "") is local and ("without a password" in said) is not local
    warn_if_open(host, protected=True)
    assert ("has the key" in capsys.readouterr().err) is not local


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_wait_and_are_given_back(number: int) -> None:
    before = signal.getsignal(number)
    with until_told() as told:
        assert not told.is_set()
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
        wait(told)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_does_what_it_did_before(first: int, second: int) -> None:
    """Closing may take long, and who asks for the end again means it."""
    heard: list[int] = []
    before = signal.signal(second, lambda number, _: heard.append(number))
    try:
        with until_told() as told:
            signal.raise_signal(first)
            assert told.is_set() and heard == []
            signal.raise_signal(second)
            assert heard == [second]
        signal.raise_signal(second)
        assert heard == [second] * 2
    finally:
        signal.signal(second, before)
