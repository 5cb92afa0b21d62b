"""Answers of a GGUF file through llama.cpp.

The model's own chat template is applied by llama.cpp. A base model brings none; llama.cpp would take ChatML, which
the model has never seen, so such a model goes on with the last message as with any text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from razor.models.llama_server import LlamaServer, has_chat_template
from razor.models.llama_stream import Stream
from razor.serve.answer import Messages, Settings
from razor.serve.engine import Engine, Writing

BATCH = 64
"""Tokens of a prompt that are read at once; Stop waits for a batch to be done, so it is a small one."""


class LlamaEngine(Engine):
    """A GGUF in a llama.cpp server inside this process.

    Args:
        gguf: the file.
        name: of the model; None: of the file.
        context: most tokens of prompt and answer together.
        kv: how keys and values are kept: `q8_0` (8 bits) or `f16`.
        threads: of the computation; None: the cores there are.

    Raises:
        RazorError: see `LlamaServer`.
    """

    runtime: ClassVar[str] = "llama_cpp"

    def __init__(
        self,
        gguf: Path,
        name: str | None = None,
        context: int = 4096,
        kv: str = "q8_0",
        threads: int | None = None,
    ) -> None:
        name = name or gguf.stem
        self._server = LlamaServer(
            gguf, context=context, kv=kv, threads=threads, batch=BATCH, name=name, key="run"
        )
        self._chats = has_chat_template(gguf)
        self._stream: Stream | None = None
        super().__init__(name, int(self._server.facts()["size"]))

    def _write(self, messages: Messages, settings: Settings, writing: Writing) -> str:
        self._stream = self._ask(messages, settings)
        tokens, ended = 0, "end"
        if writing.over:
            self._stream.close()
        for event in self._stream:
            if self._chats:
                choice = (event.get("choices") or [{}])[0]
                text, reason = choice.get("delta", {}).get("content") or "", choice.get("finish_reason")
                length = reason == "length"
            else:
                text, length = event["content"], event.get("stop_type") == "limit"
            ended = "length" if length else ended
            tokens = event.get("timings", {}).get("predicted_n", tokens)
            writing.put(text, tokens)
            if writing.over:
                self._stream.close()
        return ended

    def _ask(self, messages: Messages, settings: Settings) -> Stream:
        body: dict[str, Any] = {
            "n_predict": settings.max_new_tokens,
            "temperature": settings.temperature,
            "seed": settings.seed,
            "samplers": ["temperature", "top_p"],  # what Transformers does with the same numbers
            "top_p": settings.top_p,
            "timings_per_token": True,
            "cache_prompt": True,
        }
        if not self._chats:
            return self._server.stream("/completion", prompt=messages[-1]["content"], **body)
        thinking = {"enable_thinking": settings.thinking}
        return self._server.stream(
            "/v1/chat/completions",
            messages=list(messages),
            reasoning_format="none",  # thoughts are part of the text
            chat_template_kwargs=thinking,
            **body,
        )

    def _interrupt(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def _free(self) -> None:
        self._server.close()
