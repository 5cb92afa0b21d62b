"""A page in the browser to try exported models: settings of the page, and its life from start to Ctrl-C.

The page runs in this process, through Gradio, and answers to this machine alone unless told otherwise. Gradio's own
habits are off: no analytics, no public link, no fonts from elsewhere, no history of runs, no second server in Node.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from razor.errors import RazorError
from razor.serve.desk import Desk
from razor.serve.engine import reason
from razor.serve.listening import check_address, until_told, wait, warn_if_open
from razor.serve.opening import check_llama, load
from razor.serve.question import Limits

CONVERSATIONS = 1000
"""Pages whose conversations are kept; who comes back after more have been loaded is told that theirs is gone."""


@dataclass(frozen=True)
class Playground:
    """What the page offers, and where.

    Args:
        folder: searched for models.
        host: address to listen on.
        port: 0 takes a free one.
        context: for llama.cpp, most tokens of a conversation.
        kv: for llama.cpp, how keys and values are kept.
        threads: for llama.cpp; None: the cores there are.
        max_prompt: characters of a message.
        max_new_tokens: most tokens of an answer.
        queue: how many may wait.

    Raises:
        RazorError: a value that is none of the choices, or a number out of range.
    """

    folder: Path
    host: str = "127.0.0.1"
    port: int = 7860
    context: int = 4096
    kv: str = "q8_0"
    threads: int | None = None
    max_prompt: int = 4000
    max_new_tokens: int = 1024
    queue: int = 8

    def __post_init__(self) -> None:
        check_llama(self.context, self.kv, self.threads)
        self._limits()

    def _limits(self) -> Limits:
        return Limits(self.max_prompt, self.max_new_tokens, self.queue)

    def run_until(self, told: Callable[[str], None] | None = None) -> None:
        """Show the page until Ctrl-C or SIGTERM (or until `told`, which gets its address, returns).

        Raises:
            RazorError: Gradio is missing, the port is taken, there are no models, the page cannot be shown.
        """
        check_gradio()
        check_address(self.host, self.port)
        if self.port:  # Gradio takes none that is taken there, whatever the host
            check_address("127.0.0.1", self.port)
        desk = Desk(
            self.folder,
            self._limits(),
            lambda found: load(found, self.context, self.kv, self.threads),
        )
        warn_if_open(self.host)
        with until_told() as event:
            page, address = self._launch(desk)
            try:
                print(f"{len(desk.models())} models of '{self.folder}'\nopen     {address}", flush=True)
                told(address) if told is not None else wait(event)
            finally:
                desk.close()
                page.close(verbose=False)
        print("stopped", flush=True)

    def _launch(self, desk: Desk) -> tuple[Any, str]:
        """The page and its address.

        Raises:
            RazorError: somebody else has taken the port by now, or the page cannot be reached from here.
        """
        _quieten(self.host)
        from starlette.middleware import Middleware

        from razor.serve.page import CSS, Policy, build, theme

        page = build(desk)
        page.queue(max_size=self.queue, default_concurrency_limit=1, api_open=False)
        port = self.port or _free_port(self.host)
        try:
            page.launch(
                server_name=f"[{self.host}]" if ":" in self.host else self.host,
                server_port=port,
                share=False,
                prevent_thread_lock=True,
                quiet=True,
                ssr_mode=False,
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                mcp_server=False,
                pwa=False,
                state_session_capacity=CONVERSATIONS,
                max_file_size="1mb",
                app_kwargs={"middleware": [Middleware(Policy)]},
                theme=theme(),
                css=CSS,
            )
        except Exception as error:  # of sockets, of httpx, and plain ones of Gradio's own
            page.close(verbose=False)
            raise RazorError(
                f"The page cannot be shown on port={port} of host={self.host}: {reason(error)}"
            ) from error
        return page, str(page.local_url).replace("[::]", "[::1]")  # as seen from here


def check_gradio() -> None:
    """Check that Gradio is installed.

    Raises:
        RazorError: it is not; the text holds the command that installs it.
    """
    if importlib.util.find_spec("gradio") is None:
        raise RazorError("The playground needs Gradio: pip install 'razor-qad[playground]'.")


def _quieten(host: str) -> None:
    """Before Gradio is imported: no word to anybody else, and it asks this machine itself, not a proxy."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    for key in ("NO_PROXY", "no_proxy"):
        words = [word for word in os.environ.get(key, "").split(",") if word]
        os.environ[key] = ",".join(dict.fromkeys([*words, "127.0.0.1", "localhost", host]))
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _free_port(host: str) -> int:
    family = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
