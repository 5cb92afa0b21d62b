"""`razor serve`: what is said before it serves; and a real process with a real model and OpenAI's client."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from razor.errors import RazorError
from razor.models.llama_server import LOCAL
from razor.serve.server import Serving

ROOT = Path(__file__).resolve().parents[2]
START = "import sys; from razor.cli.talk import serve; sys.exit(serve(sys.argv[1:]))"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run=nowhere"], "run='nowhere' does not exist"),
        (["port=99999"], "port='99999' must be a whole number in 0..65535"),
        (["parallel=0"], "parallel='0' must be a whole number in 1..256"),
        (["context=many"], "context='many' must be a whole number"),
        (["threads=0"], "threads='0'"),
        (["kv=q2"], "kv='q2'. Choices: q8_0, f16"),
        (["host=192.0.2.1"], "host='192.0.2.1' is no address of this machine"),
    ],
)
def test_bad_words(verb: Callable[..., Any], tmp_path: Path, words: list[str], expected: str) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    given = {"run": str(tmp_path), "port": "0"} | dict(word.split("=") for word in words)
    problem = verb("serve", *(f"{key}={value}" for key, value in given.items())).problem
    assert expected in problem


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


class Served:
    """`razor serve` in a process of its own."""

    def __init__(self, gguf: Path, *words: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, f"run={gguf}", "port=0", "context=1024", *words],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.said = ""
        while "-d '" not in self.said and (line := self.process.stdout.readline()):
            self.said += line
        found = re.search(r"base +(http://127\.0\.0\.1:\d+)/v1", self.said)
        assert found, self.said + str(self.process.stderr and self.process.stderr.read())
        self.url = found.group(1)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


@pytest.fixture(scope="module")
def served(real_gguf: Path) -> Iterator[Served]:
    server = Served(real_gguf, "parallel=2")
    yield server
    if server.process.poll() is None:
        server.end()


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
def test_two_at_once(client: Any) -> None:
    found: list[str] = []

    def ask() -> None:
        done = client.chat.completions.create(model="any", messages=QUESTION, max_tokens=8, temperature=0)
        found.append(done.choices[0].message.content)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and all("Berlin" in text for text in found)


@pytest.mark.slow
def test_what_it_prints_works(served: Served) -> None:
    assert "97" in served.said or "96.6 MB" in served.said
    with LOCAL.open(f"{served.url}/health") as answer:
        assert answer.status == 200
    command = served.said.split("try ")[1].replace("\\\n", " ").strip()
    done = subprocess.run(["bash", "-c", f"{command} --noproxy '*' -s"], capture_output=True, text=True)
    assert '"role":"assistant"' in done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ends_when_told_also_while_it_writes(real_gguf: Path, number: int) -> None:
    server = Served(real_gguf, RAZOR_API_KEY="sesame")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        LOCAL.open(f"{server.url}/v1/models")
    assert "$RAZOR_API_KEY" in server.said and "sesame" not in server.said
    request = urllib.request.Request(
        f"{server.url}/completion",
        b'{"prompt": "Once", "n_predict": 900, "ignore_eos": true, "stream": true}',
        {"Authorization": "Bearer sesame", "Content-Type": "application/json"},
    )
    answer = LOCAL.open(request)
    assert answer.readline().startswith(b"data: ")
    start = time.perf_counter()
    code, out, err = server.end(number)
    assert (code, out, err) == (0, "stopped\n", "")
    assert time.perf_counter() - start < 5  # container runtimes kill after ten
