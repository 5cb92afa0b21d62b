"""Streams that end, fail and are broken off, against a server of our own that behaves badly on purpose."""

from __future__ import annotations

import json
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

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.asked.append((self.path, body, self.headers["Authorization"]))
            self.send_response(state.status)
            self.end_headers()
            try:
                for line in state.lines:
                    if line == "wait":
                        while not state.wait.is_set():
                            self.wfile.write(b":\n\n")
                            self.wfile.flush()
                            time.sleep(0.02)
                        continue
                    self.wfile.write(line.encode() + b"\n\n")
            except OSError:
                state.gone.set()

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


def test_nobody_there() -> None:
    with pytest.raises(RazorError, match="does not answer /x"):
        list(Stream("http://127.0.0.1:9", "/x", {}, JSON))


def test_closing_wakes_the_one_that_waits_and_tells_the_server(server: Any) -> None:
    server.lines = ['data: {"a": 1}', "wait"]
    stream = Stream(server.address, "/x", {}, JSON)
    threading.Timer(0.2, stream.close).start()
    start = time.perf_counter()
    assert list(stream) == [{"a": 1}]
    assert time.perf_counter() - start < 5
    assert server.gone.wait(5)


def test_closed_before_it_began(server: Any) -> None:
    stream = Stream(server.address, "/x", {}, JSON)
    stream.close()
    assert list(stream) == [] and server.asked == []


def test_reasons() -> None:
    assert reason_in(b'{"error": {"message": "a\\nb"}}') == "a\nb"
    assert reason_in(b'{"message": "plain"}') == "plain"
    assert reason_in(b"<html> no\n json") == "<html> no json"
    assert reason_in(b'{"error": "text"}') == '{"error": "text"}'
