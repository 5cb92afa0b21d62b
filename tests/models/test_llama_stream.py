"""Streams that end, fail and are broken off, against a server of our own that behaves badly on purpose."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from razor.errors import RazorError
from razor.models.llama_stream import Stream, reason_in

JSON = {"Content-Type": "application/json", "Authorization": "Bearer k"}


@pytest.fixture
def server() -> Iterator[Any]:
    state = SimpleNamespace(lines=[], status=200, wait=threading.Event(), asked=[], gone=threading.Event())
    state.chunked = False

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.asked.append((self.path, body, self.headers["Authorization"]))
            self.close_connection = True  # also in the middle of an answer in chunks
            self.send_response(state.status)
            if state.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                for line in state.lines:
                    if line == "silence":
                        state.wait.wait(60)
                    elif line == "pings":
                        while not state.wait.is_set():
                            self.put(b":\n\n")
                            time.sleep(0.02)
                    elif line == "the last chunk":
                        self.wfile.write(b"0\r\n\r\n")
                    else:
                        self.put(line.encode() + b"\n\n")
            except OSError:
                state.gone.set()

        def put(self, content: bytes) -> None:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content) if state.chunked else content)

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{http.server_port}"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield state
    state.wait.set()
    http.shutdown()
    http.server_close()


def test_events_until_done(server: Any) -> None:
    server.lines = ['data: {"a": 1}', ": ping", 'data: {"a": "ü"}', "data: [DONE]"]
    assert list(Stream(server.address, "/x", {"stream": True}, JSON)) == [{"a": 1}, {"a": "ü"}]
    assert server.asked == [("/x", {"stream": True}, "Bearer k")]


def test_refusals_are_in_the_servers_words(server: Any) -> None:
    server.status, server.lines = 400, ['{"error": {"code": 400, "message": "request (631 tokens) exceeds"}}']
    with pytest.raises(RazorError, match=r"refuses /x: request \(631 tokens\) exceeds"):
        list(Stream(server.address, "/x", {}, JSON))
    server.status = 200
    for line in ('error: {"message": "no more"}', 'data: {"error": {"message": "no more"}}'):
        server.lines = ['data: {"a": 1}', line]
        with pytest.raises(RazorError, match="broke off /x: no more"):
            list(Stream(server.address, "/x", {}, JSON))
    server.lines = ["data: {"]
    with pytest.raises(RazorError, match="does not answer /x"):
        list(Stream(server.address, "/x", {}, JSON))


PIECE = 'data: {"content": "a", "stop": false}'
LAST = [
    "data: [DONE]",
    'data: {"content": "", "stop": true}',
    'data: {"choices": [{"delta": {}, "finish_reason": "length"}]}',
]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("last", LAST)
def test_an_answer_that_says_that_it_has_ended(server: Any, chunked: bool, last: str) -> None:
    server.chunked, server.lines = (
        chunked,
        [PIECE, last, 'data: {"usage": 1, "choices": []}', "the last chunk"],
    )
    server.lines = server.lines[: 4 if chunked else 3]
    events = list(Stream(server.address, "/x", {}, JSON))
    assert events[0] == {"content": "a", "stop": False} and events[-1] == {"usage": 1, "choices": []}


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    "lines", [[], [PIECE], [PIECE, ": ping"], ['data: {"choices": [{"delta": {}, "finish_reason": null}]}']]
)
def test_an_answer_that_is_lost_between_two_pieces(server: Any, chunked: bool, lines: list[str]) -> None:
    """As where the server's process dies; http.client takes it for the end."""
    server.chunked, server.lines, found = chunked, lines, []
    with pytest.raises(RazorError, match="does not answer /x to the end: the connection was lost"):
        found.extend(Stream(server.address, "/x", {}, JSON))


def test_nobody_there() -> None:
    with socket.socket() as nobody:  # a port that is taken, and where nobody answers
        nobody.bind(("127.0.0.1", 0))
        with pytest.raises(RazorError, match="does not answer /x"):
            list(Stream(f"http://127.0.0.1:{nobody.getsockname()[1]}", "/x", {}, JSON))


def reading(stream: Stream) -> tuple[threading.Thread, threading.Event, list[Any]]:
    """A thread that reads a stream; an event of its first piece; all pieces."""
    begun, found = threading.Event(), []

    def read() -> None:
        for event in stream:
            found.append(event)
            begun.set()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread, begun, found


def test_closing_wakes_the_one_that_waits(server: Any) -> None:
    server.lines = [PIECE, "silence"]
    stream = Stream(server.address, "/x", {}, JSON)
    thread, begun, found = reading(stream)
    assert begun.wait(60)
    stream.close()
    thread.join(30)  # the server is silent for longer
    assert not thread.is_alive() and found == [{"content": "a", "stop": False}]


def test_closing_tells_the_server(server: Any) -> None:
    server.lines = [PIECE, "pings"]
    stream = Stream(server.address, "/x", {}, JSON)
    _, begun, _ = reading(stream)
    assert begun.wait(60)
    stream.close()
    assert server.gone.wait(60)


def test_closed_before_it_began(server: Any) -> None:
    stream = Stream(server.address, "/x", {}, JSON)
    stream.close()
    assert list(stream) == [] and server.asked == []


def test_reasons() -> None:
    assert reason_in(b'{"error": {"message": "a\\nb"}}') == "a\nb"
    assert reason_in(b'{"message": "plain"}') == "plain"
    assert reason_in(b"<html> no\n json") == "<html> no json"
    assert reason_in(b'{"error": "text"}') == '{"error": "text"}'
