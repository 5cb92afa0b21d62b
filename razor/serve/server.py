"""A GGUF behind OpenAI's protocol: llama.cpp's server, in the foreground.

Nothing of Razor stands between a client and llama.cpp: routes, streaming, slots and its web page are llama.cpp's
own. Here the model is found and checked, and the port and the key are settled.

    /v1/chat/completions, /v1/completions, /v1/models    as OpenAI's clients use them
    /health                                              200 once the model is loaded; never asks for the key
    /                                                    llama.cpp's page to chat in
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from razor.errors import RazorError
from razor.serve.listening import check_address, warn_if_open
from razor.serve.opening import check_llama, check_whole, choose

if TYPE_CHECKING:
    from razor.models.llama_server import LlamaServer


@dataclass(frozen=True)
class Serving:
    """What is served, and where.

    Args:
        run: a GGUF file, or a folder that holds one.
        host: address to listen on.
        port: 0 takes a free one.
        context: most tokens of a request, prompt and answer together.
        parallel: requests computed at once, each with a context of its own.
        kv: how keys and values are kept.
        threads: of the computation; None: the cores there are.
        name: what clients call the model; None: its file's name.
        origins: web pages whose scripts a browser lets read the answers; None: the server's own alone. It keeps
            nobody from asking; a key does.
        api_key: demanded of clients; None: nothing is.
        key_name: the environment variable that holds it, for the example that is printed.

    Raises:
        RazorError: a value that is none of the choices, a number out of range, an empty key.
    """

    run: Path
    host: str = "127.0.0.1"
    port: int = 8080
    context: int = 4096
    parallel: int = 1
    kv: str = "q8_0"
    threads: int | None = None
    name: str | None = None
    origins: str | None = None
    api_key: str | None = None
    key_name: str = "RAZOR_API_KEY"

    def __post_init__(self) -> None:
        check_llama(self.context, self.kv, self.threads, self.parallel)
        if self.api_key is not None and not re.fullmatch(r"[!-~]{1,512}", self.api_key):
            raise RazorError("The API key must be 1 to 512 printable ASCII characters, without spaces.")

    def start(self) -> LlamaServer:
        """Load the model and listen; says where on stdout.

        Raises:
            RazorError: the port is taken, there is no such model, it is damaged, or the package is missing.
        """
        check_address(self.host, self.port)
        found = choose(self.run, "llama_cpp")
        check_whole(found)
        warn_if_open(self.host, self.api_key is not None)
        from razor.models.llama_server import LlamaServer

        server = LlamaServer(
            found.path,
            context=self.context,
            parallel=self.parallel,
            kv=self.kv,
            threads=self.threads,
            host=self.host,
            port=self.port,
            name=self.name or found.path.stem,
            api_key=self.api_key,
            origins=self.origins,
            key="run",
        )
        self._announce(server, found.path)
        return server

    def _announce(self, server: LlamaServer, gguf: Path) -> None:
        facts = server.facts()
        url = server.address.replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]")  # as seen from here
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 64}
        key = f'-H "Authorization: Bearer ${self.key_name}" ' if self.api_key else ""
        print(
            f"model    {self.name or gguf.stem}, {facts['size'] / 1e6:.1f} MB, up to {facts['n_ctx']} tokens"
        )
        print(f"base     {url}/v1")
        print(f"health   curl {url}/health")
        print(f"try      curl {url}/v1/chat/completions {key}-H 'Content-Type: application/json' \\")
        print(f"           -d '{json.dumps(body)}'", flush=True)
