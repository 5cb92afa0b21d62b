"""The playground's page in a real browser: what a visitor does there, and a server of pictures beside it."""

from __future__ import annotations

import base64
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BARE = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WAIT = 120_000
"""Milliseconds that an answer may take on a busy machine."""


@contextmanager
def opened(browser: Any, url: str, width: int = 1280, height: int = 820) -> Iterator[Any]:
    """The page in a tab of its own."""
    with browser.new_page(viewport={"width": width, "height": height}) as page:
        page.set_default_timeout(WAIT)
        page.goto(url)
        page.wait_for_selector("#message textarea")
        yield page


def ask(page: Any, text: str) -> None:
    """Send a message, and wait until it is part of the conversation."""
    before = len(page.query_selector_all("#talk .user"))
    page.fill("#message textarea:enabled", text)
    page.press("#message textarea", "Enter")
    page.wait_for_function(f"() => document.querySelectorAll('#talk .user').length > {before}")


def choose(page: Any, picker: str, label: str) -> None:
    page.click(f"#{picker} input")
    page.get_by_role("option", name=label).first.click()


def finished(page: Any, send: str = "send") -> None:
    page.wait_for_selector(f"#{send}:visible")


def shoot(page: Any, path: Path) -> None:
    """Write a picture of the page, with nothing under the mouse and no cursor."""
    page.mouse.move(5, 5)
    page.evaluate("() => document.activeElement.blur()")
    page.wait_for_timeout(800)
    page.screenshot(path=path)
    assert path.stat().st_size < 200_000


class Pictures:
    """A server of pictures, as a model's answer may name one; what was asked of it is in `asked`."""

    PNG = base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABh6FO1AAAAABJRU5ErkJggg=="
    )

    def __enter__(self) -> Pictures:
        asked = self.asked = []

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_response(200)
                self.send_header("Content-Type", "image/png" if self.path.endswith("png") else "text/html")
                self.end_headers()
                self.wfile.write(Pictures.PNG if self.path.endswith("png") else b"<p>page</p>")

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()


def picture(page: Any, url: str) -> str:
    """Whether a picture is shown on a page."""
    return page.evaluate(
        """url => new Promise(done => { const i = new Image(); i.onload = () => done('loaded');
        i.onerror = () => done('blocked'); i.src = url; })""",
        url,
    )
