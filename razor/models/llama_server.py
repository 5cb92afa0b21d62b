"""A model in a GGUF file, run by llama.cpp: its server, inside this process.

The package `xllamacpp` brings llama.cpp's HTTP server in a wheel, without a compiler. It listens on a port of this
machine and speaks OpenAI's protocol besides its own, so whoever talks to it, from this process or from outside,
uses the same door: the teacher that writes text (`razor.data.llama_cpp`), chat and playground
(`razor.serve.llama_engine`), and `razor serve`, which does nothing but keep the door open. Several requests are
computed together, each in a slot with a part of the context of its own.

**Keys and values** may be kept as `q8_0`: 8-bit integers in blocks of 32 with an fp16 scale, half the memory of
fp16. It is the KV8 that Razor's students are trained with, in finer groups.
"""

from __future__ import annotations

import importlib
import json
import mmap
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from razor.errors import RazorError
from razor.models.llama_stream import Stream, reason_in

KV_TYPES = ("q8_0", "f16")
"""How keys and values are kept, as `kv=` says it."""

LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks this machine itself, whatever proxy the environment names."""

NOBODY = "http://nobody.invalid"
"""An origin that no web page can have; where none is named, llama.cpp would let all read its answers."""

METADATA_BYTES = 1 << 26
"""A GGUF says everything about itself within its first 64 MiB, vocabulary included."""


class LlamaServer:
    """A llama.cpp server in this process, until `close`.

    Args:
        gguf: the model's file.
        context: most tokens of a request, prompt and answer together; a model that reads less keeps its own limit.
        parallel: how many requests are computed at once.
        kv: how keys and values are kept, one of `KV_TYPES`.
        threads: of the computation; None takes the cores that this process may use.
        batch: tokens of a prompt that are read at once; what is broken off ends after one of them.
        host: address to listen on.
        port: to listen on; 0 takes a free one.
        name: what the server calls the model; None is the file's path.
        api_key: demanded of every request (`Authorization: Bearer KEY`), except for /health.
        origins: web pages whose scripts a browser lets read the answers, as an origin or `*`; None: the server's
            own page alone. Requests whose answer nobody reads come through from any page.
        key: the option that named the file, for error texts.

    Raises:
        RazorError: the package is missing, a value is none of the choices, or llama.cpp cannot read the file.
    """

    def __init__(
        self,
        gguf: Path | str,
        *,
        context: int,
        parallel: int = 1,
        kv: str = "q8_0",
        threads: int | None = None,
        batch: int = 2048,
        host: str = "127.0.0.1",
        port: int = 0,
        name: str | None = None,
        api_key: str | None = None,
        origins: str | None = None,
        key: str = "gguf",
    ) -> None:
        package = load_package()
        if kv not in KV_TYPES:
            raise RazorError(f"kv='{kv}'. Choices: {', '.join(KV_TYPES)}.")
        params = package.CommonParams()
        params.model.path = str(gguf)
        params.n_parallel, params.n_ctx = parallel, parallel * context
        params.n_batch, params.n_ubatch = batch, min(batch, 512)
        params.n_predict, params.cache_ram_mib, params.verbosity = -1, 0, 0
        params.fit_params = params.kv_unified = params.warmup = params.endpoint_slots = False
        if kv == "q8_0":
            params.cache_type_k = params.cache_type_v = package.ggml_type.GGML_TYPE_Q8_0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads or cores()
        params.hostnames, params.port = [host], port
        params.sse_ping_interval = 1  # seconds between two looks at whether a stream shall end
        params.cors_origins = origins or NOBODY
        if name is not None:
            params.model_alias = {name}
        if api_key is not None:
            params.api_keys = [api_key]
        try:
            self._server = package.Server(params)
        except Exception as error:  # C++ errors of any kind
            reason = " ".join(str(error).split())[:200]
            raise RazorError(
                f"llama.cpp cannot load {key}='{gguf}': {reason}{_hint(Path(gguf), kv)}"
            ) from error
        self.address: str = self._server.listening_address
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def close(self) -> None:
        """Stop listening, break off what runs, give the memory back; a running stream keeps it a second or two."""
        self._server = None

    def facts(self) -> dict[str, Any]:
        """What llama.cpp knows of the model: n_vocab, n_ctx, n_ctx_train, n_params, size (bytes of its tensors)."""
        return dict(self.ask("/v1/models")["data"][0]["meta"])

    def ask(self, path: str, **body: Any) -> Any:
        """A JSON answer of the server; no body asks with GET.

        Raises:
            RazorError: it refuses, in its own words, or is gone.
        """
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(self.address + path, data, self._headers)
        try:
            with LOCAL.open(request) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise RazorError(f"llama.cpp refuses {path}: {reason_in(error.read(2000))}") from error
        except OSError as error:
            raise RazorError(f"llama.cpp does not answer {path}: {error}") from error

    def stream(self, path: str, **body: Any) -> Stream:
        """An answer that comes in pieces; the question is asked when the first one is."""
        return Stream(self.address, path, {**body, "stream": True}, self._headers)


def has_chat_template(gguf: Path) -> bool:
    """Whether a GGUF brings a chat template; without one llama.cpp would take ChatML for every model."""
    with gguf.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"tokenizer.chat_template", 0, METADATA_BYTES) >= 0


def cores() -> int:
    """How many threads compute by default: OMP_NUM_THREADS, else the cores that this process may use.

    Two hardware threads of one core count once, where Linux tells: the second only gets in the way of the first.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    pairs = set()
    for number in allowed:
        try:
            pairs.add(Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list").read_text())
        except OSError:
            pairs.add(str(number))
    return len(pairs)


def _hint(gguf: Path, kv: str) -> str:
    """Words for an error: what a look at the file shows, since llama.cpp tells its reasons to its log alone."""
    try:
        with gguf.open("rb") as file:
            if file.read(4) != b"GGUF":
                return " (the file does not begin as a GGUF does)"
    except OSError:
        return " (the file cannot be opened)"
    hint = " (cut short or damaged, of an architecture that this llama.cpp does not know, or too large"
    return hint + ("; heads that are no multiple of 32 wide need kv=f16)" if kv == "q8_0" else ")")


def load_package() -> Any:
    """The module `xllamacpp`.

    Raises:
        RazorError: it is not installed.
    """
    try:
        return importlib.import_module("xllamacpp")
    except ImportError as error:
        raise RazorError(
            "A GGUF is run by llama.cpp, of the package xllamacpp: pip install 'razor-qad[llama-cpp]' "
            "(or pip install xllamacpp); or choose engine=transformers."
        ) from error
