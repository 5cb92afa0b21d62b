"""The page without a browser: how it is wired, what it answers, where it can be shown. Models write by a script."""

from __future__ import annotations

import json
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from razor.errors import RazorError
from razor.models.llama_server import LOCAL
from razor.serve import playground
from razor.serve.desk import Desk
from razor.serve.playground import Playground
from razor.serve.question import Limits
from tests.serve.scripted import Scripted, saying
from tests.serve.scripted_page import ScriptedPage

pytest.importorskip("gradio")

from razor.serve.page import Policy, build, needed


@pytest.fixture(scope="module")
def shown(environment: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptedPage]:
    with ScriptedPage(tmp_path_factory.mktemp("models")) as shown:
        yield shown


def test_over_comes_once_whatever_became_of_it(tmp_path: Path) -> None:
    """Gradio's page fires either a success or a failure of an event, and `then` after a success alone."""
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    page = build(Desk(tmp_path, Limits(), lambda found: Scripted(saying(), found.name)))
    events = list(page.fns.values())
    writing = [one for one in events if one.name == "write"]
    assert len(writing) == 4  # a key and Enter, in two tabs
    for one in writing:
        after = [other for other in events if other.trigger_after == one._id]
        assert [other.name for other in after] == ["over", "over"]
        assert [other.trigger_only_on_success for other in after] == [True, False]
        assert [other.trigger_only_on_failure for other in after] == [False, True]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", True),
        ("/config", True),
        ("/assets/index.js", True),
        ("/theme.css", True),
        ("/gradio_api/queue/join", True),
        ("/gradio_api/queue/data", True),
        ("/gradio_api/run/predict", True),
        ("/gradio_api/heartbeat/abc", True),
        ("/gradio_api/startup-events", True),
        ("/gradio_api/upload", False),
        ("/gradio_api/upload_progress", False),
        ("/gradio_api/component_server", False),
        ("/gradio_api/component_server/", False),
        ("/gradio_api/proxy=https://example.com/", False),
        ("/gradio_api/file=/etc/passwd", False),
        ("/gradio_api/file=https://example.com/", False),
        ("/gradio_api/process_recording", False),
        ("/gradio_api/runs", False),
        ("/gradio_api/call/write", False),
        ("/gradio_api", False),
        ("/below/gradio_api/upload", False),
    ],
)
def test_what_the_page_does_not_need_is_refused(path: str, expected: bool) -> None:
    assert needed(path) is expected
    asked, sent = [], []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope["path"])
        await send({"type": "http.response.start", "status": 200})

    async def send(message: Any) -> None:
        sent.append(message)

    with pytest.raises(StopIteration):  # nothing in there waits
        Policy(app)({"type": "http", "path": path}, None, send).send(None)
    assert asked == [path] * expected and sent[0]["status"] == (200 if expected else 404)
    assert b"content-security-policy" in dict(sent[0]["headers"])


@pytest.mark.slow
def test_the_server_refuses_them_too(shown: ScriptedPage) -> None:
    for path in ("upload", "component_server", "proxy=https://example.com/", "file=/etc/hostname"):
        for data in (None, b"{}"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                LOCAL.open(urllib.request.Request(f"{shown.url}gradio_api/{path}", data))
    with LOCAL.open(f"{shown.url}config") as answer:
        assert json.load(answer)["title"] == "Razor playground"


@pytest.mark.slow
@pytest.mark.parametrize("host", ["::1", "::"])
def test_addresses_of_ipv6(environment: Any, tmp_path: Path, host: str) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind((host, 0))
    except OSError:
        pytest.skip("needs IPv6")
    with ScriptedPage(tmp_path, host=host) as shown:
        assert shown.url.startswith("http://[::1]:")
        with LOCAL.open(shown.url) as answer:
            assert answer.status == 200


def test_its_own_address_is_asked_without_a_proxy(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("NO_PROXY", "example.com")
    playground._quieten("192.0.2.7")
    assert os.environ["NO_PROXY"].split(",") == ["example.com", "127.0.0.1", "localhost", "192.0.2.7"]


def test_a_port_that_is_taken_at_the_last_moment(
    environment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(playground, "check_address", lambda host, port: None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RazorError, match=f"cannot be shown on port={port} of host=127.0.0.1: "):
            Playground(tmp_path, port=port).run_until(lambda address: pytest.fail("it is shown"))


def test_a_port_that_is_taken_on_this_machine_s_own_address(tmp_path: Path) -> None:
    """Gradio does not take it, whatever the host is."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RazorError, match=f"port={port} of host=127.0.0.1 is taken"):
            Playground(tmp_path, host="127.0.0.2", port=port).run_until()
