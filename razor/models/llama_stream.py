"""An answer of llama.cpp's server that comes in pieces, and can be broken off.

The server sends an event a token, and nothing while it reads a prompt, which takes seconds on a CPU. Whoever waits
for a piece cannot look elsewhere, so breaking off is another thread's: it shuts the socket, which wakes the one
that waits and tells the server to stop computing.

A connection that is lost between two pieces looks like the end of the answer to http.client. So an answer counts as
whole when its last event says so: `stop` (llama.cpp's own protocol), a `finish_reason` (OpenAI's), or `[DONE]`.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

from razor.errors import RazorError


class Stream:
    """Events of a streamed answer, as parsed JSON; `close` from any thread breaks off, on both sides."""

    def __init__(self, address: str, path: str, body: dict[str, Any], headers: dict[str, str]) -> None:
        self._path, self._body, self._headers = path, body, headers
        self._connection = HTTPConnection(urlsplit(address).netloc)
        self._connection.auto_open = 0  # once closed, it stays closed
        self._lock, self._closed = Lock(), False
        self._socket: socket.socket | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The events; ends early, without a word, when it was closed.

        Raises:
            RazorError: the server refuses (its own words), or is gone before the answer has ended.
        """
        whole = False
        try:
            with self._lock:
                if self._closed:
                    return
                self._connection.connect()
                self._socket = self._connection.sock  # http.client forgets it when the answer begins
            self._connection.request("POST", self._path, json.dumps(self._body), self._headers)
            answer = self._connection.getresponse()
            if answer.status != 200:
                raise RazorError(f"llama.cpp refuses {self._path}: {reason_in(answer.read(2000))}")
            for line in answer:
                kind, _, content = line.decode(errors="replace").strip().partition(": ")
                if kind not in ("data", "error") or content == "[DONE]":
                    whole = whole or content == "[DONE]"
                    continue
                event = json.loads(content)
                if kind == "error" or "error" in event:
                    raise RazorError(f"llama.cpp broke off {self._path}: {reason_in(content.encode())}")
                whole = whole or is_last(event)
                yield event
            if not whole and not self._closed:
                raise RazorError(
                    f"llama.cpp does not answer {self._path} to the end: the connection was lost."
                )
        except RazorError:
            raise
        except (OSError, HTTPException, ValueError) as error:
            if not self._closed:
                raise RazorError(f"llama.cpp does not answer {self._path}: {error}") from error
        finally:
            self.close()
            self._connection.close()

    def close(self) -> None:
        """Break off; the server notices and stops computing."""
        with self._lock:
            self._closed = True
            if self._socket is not None:
                with suppress(OSError):  # it was over
                    self._socket.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for a piece
                self._socket = None


def is_last(event: Any) -> bool:
    """Whether an event says that the answer has ended; figures may follow."""
    if not isinstance(event, dict):
        return False
    return event.get("stop") is True or any(
        choice.get("finish_reason") for choice in event.get("choices") or []
    )


def reason_in(content: bytes) -> str:
    """The message in an error of the server; else what it sent."""
    text = " ".join(content.decode(errors="replace").split())
    try:
        error = json.loads(text)
        return str(error.get("error", error)["message"])[:200]
    except (ValueError, KeyError, TypeError, AttributeError):
        return text[:200]
