"""A stand-in for the Hugging Face hub's HTTP API, on a port of this machine.

Tests must not write to the real hub, and cannot reach it where they run. So this server answers the requests that
`huggingface_hub` makes to create a repository, upload a folder (git blobs in the commit, larger files by LFS with
their sha256 checked) and load from it again, after the client's own source and the public descriptions of the hub
API and of git LFS. What it does not have: Xet storage (clients are told HF_HUB_DISABLE_XET=1), quotas, and the many
refusals of the real one. `Hub.url` goes into HF_ENDPOINT, which the client reads when it is imported: so, a process
of its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "stand" * 6


@dataclass
class Repo:
    """A repository: branches of files; a commit is a number."""

    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    messages: list[str] = field(default_factory=list)

    @property
    def commit(self) -> str:
        """A hash, another one after each commit."""
        return hashlib.sha1(str(len(self.messages)).encode()).hexdigest()


class Hub:
    """The server; `repos` is what it holds, `log` the requests it had."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.log: list[str] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Answer(Exception):
    """Ends a request with a status other than 200."""

    def __init__(self, status: int, code: str, text: str) -> None:
        self.status, self.code, self.text = status, code, text


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        return

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        split = urlsplit(self.path)
        path, self.query = unquote(split.path), parse_qs(split.query)
        self.hub.log.append(f"{self.command} {path}")
        try:
            for method, pattern, answer in ROUTES:
                if (method == self.command or (method == "GET" and self.command == "HEAD")) and (
                    match := re.fullmatch(pattern, path)
                ):
                    answer(self, body, **match.groupdict())
                    return
            raise _Answer(404, "EntryNotFound", f"no answer to {self.command} {path}")
        except _Answer as error:
            told = {"X-Error-Code": error.code, "X-Error-Message": error.text}
            self._reply({"error": error.text}, error.status, told)

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _reply(
        self,
        content: dict[str, Any] | list[Any] | bytes,
        status: int = 200,
        headers: dict[str, str] | None = None,
    ) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _write_access(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _Answer(401, "Unauthorized", "Invalid username or password.")

    def _repo(self, name: str) -> Repo:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            raise _Answer(404 if repo is None else 401, "RepoNotFound", "Repository not found")
        return repo

    def _files(self, name: str, revision: str) -> tuple[Repo, dict[str, bytes]]:
        repo = self._repo(name)
        if revision != repo.commit and revision not in repo.branches:
            raise _Answer(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repo, repo.branches.get(revision, repo.branches["main"])

    def create(self, body: bytes) -> None:
        self._write_access()
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        address = {"url": f"{self.hub.url}/{name}"}
        if name in self.hub.repos:
            self._reply(address | {"error": "You already created this model repo"}, 409)
            return
        self.hub.repos[name] = Repo(private=asked.get("visibility") == "private")
        self._reply(address)

    def validate(self, body: bytes) -> None:
        self._reply({"errors": [], "warnings": []})

    def branch(self, body: bytes, repo: str, revision: str) -> None:
        self._write_access()
        branches = self._repo(repo).branches
        if revision in branches:
            raise _Answer(409, "Conflict", "Reference already exists")
        branches[revision] = dict(branches["main"])
        self._reply({})

    def info(self, body: bytes, repo: str, revision: str = "main") -> None:
        found, files = self._files(repo, revision)
        siblings = [{"rfilename": name} for name in files]
        self._reply(
            {"_id": "0", "id": repo, "modelId": repo, "sha": found.commit, "private": found.private}
            | {"siblings": siblings, "tags": []}
        )

    def tree(self, body: bytes, repo: str, revision: str, under: str | None) -> None:
        _, files = self._files(repo, revision)
        inside = {n: c for n, c in files.items() if n.startswith((under or "").lstrip("/"))}
        if under and not inside:
            raise _Answer(404, "EntryNotFound", f"{under} does not exist")
        self._reply([{"type": "file", "path": n, "size": len(c), "oid": _blob(c)} for n, c in inside.items()])

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        self._write_access()
        _, files = self._files(repo, revision)
        answers = []
        for file in json.loads(body)["files"]:
            large = file["size"] > 10**7 or file["path"].endswith((".safetensors", ".gguf"))
            name, mode = (_sha256, "lfs") if large else (_blob, "regular")
            known = {"oid": name(files[file["path"]])} if file["path"] in files else {}
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False} | known)
        self._reply({"files": answers})

    def batch(self, body: bytes, repo: str) -> None:
        self._write_access()
        objects = []
        for item in json.loads(body)["objects"]:
            upload = {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}"}}}
            objects.append(item | ({} if item["oid"] in self.hub.blobs else upload))
        self._reply({"transfer": "basic", "objects": objects})

    def lfs(self, body: bytes, oid: str) -> None:
        if _sha256(body) != oid:
            raise _Answer(400, "BadRequest", "the content is another one")
        self.hub.blobs[oid] = body
        self._reply(b"")

    def commit(self, body: bytes, repo: str, revision: str) -> None:
        self._write_access()
        found, files = self._files(repo, revision)
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                found.messages.append(value["summary"])
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise _Answer(400, "BadRequest", item["key"])
        url = f"{self.hub.url}/{repo}/commit/{found.commit}"
        self._reply({"commitUrl": url, "commitOid": found.commit, "success": True})

    def resolve(self, body: bytes, repo: str, revision: str, path: str) -> None:
        found, files = self._files(repo, revision)
        if path not in files:
            raise _Answer(404, "EntryNotFound", f"{path} does not exist")
        self._reply(files[path], 200, {"ETag": f'"{_blob(files[path])}"', "X-Repo-Commit": found.commit})


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _blob(content: bytes) -> str:
    """Name of a git blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


REPO, REVISION = r"(?P<repo>[\w.-]+/[\w.-]+)", r"(?P<revision>[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("POST", f"/api/models/{REPO}/branch/{REVISION}", _Handler.branch),
    ("POST", f"/api/models/{REPO}/preupload/{REVISION}", _Handler.preupload),
    ("POST", f"/{REPO}\\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/lfs/(?P<oid>\w+)", _Handler.lfs),
    ("POST", f"/api/models/{REPO}/commit/{REVISION}", _Handler.commit),
    ("GET", f"/api/models/{REPO}", _Handler.info),
    ("GET", f"/api/models/{REPO}/revision/{REVISION}", _Handler.info),
    ("GET", f"/api/models/{REPO}/tree/{REVISION}(?P<under>/.*)?", _Handler.tree),
    ("GET", f"/{REPO}/resolve/{REVISION}/(?P<path>.+)", _Handler.resolve),
]
