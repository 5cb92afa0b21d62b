"""`razor serve`: what is said before it serves; and a real process with a real model and OpenAI's client."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.client import IncompleteRead
from pathlib import Path
from typing import Any

import pytest

from razor.cli import talk
from razor.errors import RazorError
from razor.models.llama_server import LOCAL
from razor.models.llama_stream import Stream
from razor.serve.server import Serving
from tests.serve.processes import Served


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run=nowhere"], "run='nowhere' does not exist"),
        (["port=99999"], "port='99999' must be a whole number in 0..65535"),
        (["parallel=0"], "parallel='0' must be a whole number in 1..256"),
        (["context=many"], "context='many' must be a whole number"),
        (["threads=0"], "threads='0'"),
        (["kv=q2"], "kv='q2'. Choices: f16, q8_0"),
        (["host=192.0.2.1"], "host='192.0.2.1' is no address of this machine"),
        (["host=null"], "host=null is empty: give an address"),
        (["host="], "host= is empty: give an address"),
        (["host=300"], "host='300' is no address of this machine"),
        (["run=2024"], "run='2024' does not exist"),
        (["run=null"], "run=null is empty: give a run folder"),
    ],
)
def test_bad_words(verb: Callable[..., Any], tmp_path: Path, words: list[str], expected: str) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    given = {"run": str(tmp_path), "port": "0"} | dict(word.split("=") for word in words)
    problem = verb("serve", *(f"{key}={value}" for key, value in given.items())).problem
    assert expected in problem


@pytest.mark.parametrize(
    "words", [["kv=q2"], ["context=0"], ["parallel=0"], ["threads=x"], ["api_key=NOBODY"]]
)
def test_values_are_checked_before_anything_is_looked_for(
    verb: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.delenv("NOBODY", raising=False)
    problem = verb("serve", "run=nowhere", "port=0", *words).problem
    assert "nowhere" not in problem and words[0].partition("=")[0] in problem


def test_numbers_are_texts_where_texts_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Serving] = []
    monkeypatch.setattr(Serving, "start", lambda self: made.append(self) or 1 / 0)
    monkeypatch.setenv("7", "12345")
    words = ["run=1", "host=127.0.0.1", "name=2024", "origins=8000", "api_key=7"]
    with pytest.raises(ZeroDivisionError):
        talk.serve(words)
    (serving,) = made
    assert (serving.run, serving.name, serving.origins) == (Path("1"), "2024", "8000")
    assert (serving.api_key, serving.key_name) == ("12345", "7")


def test_a_packed_folder_is_no_gguf(verb: Callable[..., Any], packed: Path) -> None:
    problem = verb("serve", f"run={packed}", "port=0").problem
    assert "holds packed" in problem and "razor export run=RUN export=[gguf]" in problem


def test_a_taken_port_is_said_before_a_model_is_looked_for(verb: Callable[..., Any]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert (
            f"port={port} of host=127.0.0.1 is taken" in verb("serve", "run=nowhere", f"port={port}").problem
        )


def test_the_key_comes_from_the_environment_and_is_a_header(
    verb: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAZOR_API_KEY", "with space")
    problem = verb("serve", "run=nowhere", "port=0").problem
    assert "API key must be 1 to 512 printable" in problem and "with space" not in problem
    monkeypatch.setenv("OTHER", "fine")
    assert "does not exist" in verb("serve", "run=nowhere", "port=0", "api_key=OTHER").problem
    with pytest.raises(RazorError, match="API key"):
        Serving(Path("x"), api_key="")


@pytest.mark.parametrize(
    ("words", "environment", "expected"),
    [
        (["api_key=OTHER"], {}, "variable that api_key names is not set"),
        (["api_key=OTHER"], {"OTHER": ""}, "variable that api_key names is empty"),
        (["api_key=OTHER"], {"RAZOR_API_KEY": "fine"}, "variable that api_key names is not set"),
        (["api_key=sk-secret-1"], {}, "variable that api_key names is not set"),
        (["api_key="], {}, "variable that api_key names is not set"),
        (["api_key=RAZOR_API_KEY"], {}, "variable that api_key names is not set"),
        ([], {"RAZOR_API_KEY": ""}, "RAZOR_API_KEY is empty: put the key in there, or unset RAZOR_API_KEY"),
        (["api_key=null"], {"RAZOR_API_KEY": ""}, "RAZOR_API_KEY is empty"),
    ],
)
def test_who_asks_for_a_key_never_gets_an_open_server(
    verb: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    environment: dict[str, str],
    expected: str,
) -> None:
    monkeypatch.setattr(Serving, "start", lambda self: pytest.fail("it serves"))
    for name in ("RAZOR_API_KEY", "OTHER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    problem = verb("serve", "run=nowhere", "port=0", *words).problem
    assert expected in problem and "secret" not in problem  # it may be the key that was given, not a name


def test_without_a_key_none_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAZOR_API_KEY", raising=False)
    assert talk._key(None) == {"api_key": None, "key_name": "RAZOR_API_KEY"}
    monkeypatch.setenv("RAZOR_API_KEY", "sesame")
    assert talk._key(None) == {"api_key": "sesame", "key_name": "RAZOR_API_KEY"}


@pytest.fixture(scope="module")
def served(real_gguf: Path) -> Iterator[Served]:
    with Served(real_gguf, "parallel=2") as server:
        yield server


@pytest.fixture
def client(served: Served) -> Any:
    openai = pytest.importorskip("openai", reason="needs the package openai")
    import httpx

    direct = httpx.Client(trust_env=False)  # whatever proxy the environment names
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", http_client=direct)


QUESTION: Any = [{"role": "user", "content": "What is the capital of Germany? Answer with one word."}]


@pytest.mark.slow
def test_openai_client_lists_the_model(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["SmolLM2-135M-Instruct.Q4_1"]


@pytest.mark.slow
def test_openai_client_chats(client: Any) -> None:
    done = client.chat.completions.create(
        model="SmolLM2-135M-Instruct.Q4_1", messages=QUESTION, max_tokens=16, temperature=0
    )
    assert "Berlin" in done.choices[0].message.content and done.choices[0].finish_reason == "stop"
    assert done.usage.completion_tokens > 0


@pytest.mark.slow
def test_openai_client_streams(client: Any) -> None:
    stream = client.chat.completions.create(
        model="any", messages=QUESTION, max_tokens=16, temperature=0, stream=True
    )
    pieces = [event.choices[0].delta.content or "" for event in stream if event.choices]
    assert "Berlin" in "".join(pieces) and sum(map(bool, pieces)) > 1


@pytest.mark.slow
def test_openai_client_is_told_what_does_not_fit(client: Any) -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match="exceeds the available context size"):
        client.chat.completions.create(model="any", messages=[{"role": "user", "content": "word " * 2000}])


@pytest.mark.slow
def test_two_at_once(client: Any, served: Served) -> None:
    """A short answer comes while a long one is still being written."""
    body = {"prompt": "Once", "n_predict": 900, "ignore_eos": True, "stream": True}
    long = Stream(served.url, "/completion", body, {"Content-Type": "application/json"})
    begun, over = threading.Event(), threading.Event()

    def read() -> None:
        for _ in long:
            begun.set()
        over.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert begun.wait(120)
        done = client.chat.completions.create(model="any", messages=QUESTION, max_tokens=8, temperature=0)
        assert "Berlin" in done.choices[0].message.content and not over.is_set()
    finally:
        long.close()
        reader.join(120)


@pytest.mark.slow
def test_what_it_prints_works(served: Served, real_gguf: Path) -> None:
    with LOCAL.open(f"{served.url}/v1/models") as answer:
        facts = json.load(answer)["data"][0]["meta"]
    assert (
        0.9 < facts["size"] / real_gguf.stat().st_size <= 1
    )  # bytes of its tensors, of a file that is little else
    told = f"SmolLM2-135M-Instruct.Q4_1, {facts['size'] / 1e6:.1f} MB, up to {facts['n_ctx']} tokens\n"
    assert f"model    {told}" in served.said
    with LOCAL.open(f"{served.url}/health") as answer:
        assert answer.status == 200
    command = served.said.split("try ")[1].replace("\\\n", " ").strip()
    done = subprocess.run(["bash", "-c", f"{command} --noproxy '*' -s"], capture_output=True, text=True)
    assert '"role":"assistant"' in done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ends_when_told_also_while_it_writes(real_gguf: Path, number: int) -> None:
    with Served(real_gguf, RAZOR_API_KEY="sesame") as server:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            LOCAL.open(f"{server.url}/v1/models")
        assert "$RAZOR_API_KEY" in server.said and "sesame" not in server.said
        request = urllib.request.Request(
            f"{server.url}/completion",
            b'{"prompt": "Once", "n_predict": 900, "ignore_eos": true, "stream": true}',
            {"Authorization": "Bearer sesame", "Content-Type": "application/json"},
        )
        with LOCAL.open(request) as answer:
            assert answer.readline().startswith(b"data: ")
            assert server.end(number) == (0, "stopped\n", "")
            with pytest.raises((IncompleteRead, ConnectionError)):  # in the middle of the answer
                answer.read()
