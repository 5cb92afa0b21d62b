"""llama.cpp in this process: full logits of a GGUF file.

An export is proven in the runtime that people will use.

**Parameters by value.** llama.cpp's C interface hands structs over by value, and they grow from version to version.
On the usual 64-bit systems a large struct travels in memory, so a buffer that is larger than the struct serves
every version; llama.cpp fills it with defaults. What is changed in it are three sizes at its start, the types of
the KV cache and the choice of flash attention, whose places are found by their defaults: 512, 2048, 512; 1, 1
(fp16) between two pairs of null pointers; and the last of four -1 in a row. Whatever does not look like that is an
error, and so is a context that did not become what was asked for.

**A damaged file can end the process:** llama.cpp checks much, but not everything, and aborts where it finds
itself wrong. `LlamaProcess` (`razor.models.llama_process`) has the same methods in a process of its own.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from razor.errors import RazorError
from razor.models.llama_library import FOLDER, Params, complaint, find_library, load_library, said, version

KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}
"""ggml's numbers of the types that a KV cache can have here."""

LONGEST_BATCH = 512


class LlamaRuntime:
    """A GGUF file, open in llama.cpp in this process.

    Args:
        gguf: the file.
        context: most tokens of a text.
        kv: type of the KV cache: "f32", "f16" or "q8_0" (blocks of 32, as A8-KV8 models are trained for).
        flash: flash attention; None: llama.cpp decides (a quantized cache of values needs it).
        threads: of the CPU; None: one for each core.

    Raises:
        RazorError: no llama.cpp, one whose structs have another layout, or it does not open the file.
    """

    def __init__(
        self,
        gguf: Path,
        context: int = 512,
        kv: str = "f16",
        flash: bool | None = None,
        threads: int | None = None,
    ) -> None:
        self._model = self._context = None
        self._library = library = load_library()
        if kv not in KV_TYPES:
            raise RazorError(f"KV cache of type '{kv}' for llama.cpp. Choices: {', '.join(KV_TYPES)}.")
        said.clear()
        self._model = library.llama_model_load_from_file(
            str(gguf).encode(), library.llama_model_default_params()
        )
        if not self._model:
            raise RazorError(f"llama.cpp does not open '{gguf}': {complaint()}")
        self._vocab = library.llama_model_get_vocab(self._model)
        self.vocabulary = int(library.llama_vocab_n_tokens(self._vocab))
        self.longest, self.batch = context, min(context, LONGEST_BATCH)
        params = _context_params(library, context, self.batch, KV_TYPES[kv], flash)
        self._context = library.llama_init_from_model(self._model, params)
        if not self._context:
            raise RazorError(f"llama.cpp makes no context for '{gguf}': {complaint()}")
        self._check_context(kv)
        cores = threads or os.cpu_count() or 1
        library.llama_set_n_threads(self._context, cores, cores)

    def _check_context(self, kv: str) -> None:
        """Compare what the context became with what was asked for."""
        context, batch = (getattr(self._library, f"llama_n_{n}")(self._context) for n in ("ctx", "batch"))
        caches = [text for _, text in said if " K (" in text]
        if context < self.longest or batch != self.batch or not _all_of(caches, f" K ({kv})"):
            raise _other_layout(f"asked for {self.longest} tokens and {kv}, it has {context}: {caches[:1]}")

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """Tokens of a text; marks such as <|im_end|> are tokens, and `special` adds what begins and ends one."""
        raw = text.encode()
        room = len(raw) + 8
        while True:
            tokens = (ctypes.c_int32 * room)()
            count = self._library.llama_tokenize(self._vocab, raw, len(raw), tokens, room, special, True)
            if count >= 0:
                return list(tokens[:count])
            room = -count

    def logits(self, tokens: Sequence[int], first: int = 0, kept: int = 0) -> NDArray[np.float32]:
        """Logits [tokens - first, vocabulary] of a text, one row after each of its tokens from `first` on.

        Args:
            tokens: the whole text.
            first: place of the token after which the first row is wanted.
            kept: how many tokens, at most `first`, it begins with that the text before began with too: they are not
                read again.

        Raises:
            RazorError: no tokens, too many, or one that is not in the vocabulary; llama.cpp fails.
        """
        self._check(tokens, 0)
        begin = self._keep(min(kept, first))
        out = np.empty((len(tokens) - first, self.vocabulary), np.float32)
        for start in range(begin, len(tokens), self.batch):
            part = tokens[start : start + self.batch]
            wanted = max(0, first - start)
            self._decode(part, start, wanted)
            for index in range(wanted, len(part)):
                out[start + index - first] = self._row(index)
        return out

    def read(self, tokens: Sequence[int], start: int = 0) -> NDArray[np.float32]:
        """Go on with a text, as who writes token by token does.

        Args:
            tokens: the next ones.
            start: how many came before them; 0 forgets what was read.

        Returns:
            Logits [vocabulary] after the last of them.

        Raises:
            RazorError: as `logits`.
        """
        self._check(tokens, start)
        if start == 0:
            self._keep(0)
        for place in range(0, len(tokens), self.batch):
            part = tokens[place : place + self.batch]
            self._decode(part, start + place, len(part) - 1)
        return self._row(-1).copy()

    def _check(self, tokens: Sequence[int], start: int) -> None:
        if not 0 < len(tokens) <= self.longest - start:
            raise RazorError(
                f"{start + len(tokens)} tokens for llama.cpp, which was opened for 1 to {self.longest}."
            )
        if not 0 <= min(tokens) <= max(tokens) < self.vocabulary:
            raise RazorError(f"Token {max(tokens)} for a vocabulary of {self.vocabulary}.")

    def _keep(self, count: int) -> int:
        """Forget what was read, but for its first tokens; how many of them are left, if only a part can be."""
        memory = self._library.llama_get_memory(self._context)
        if count and self._library.llama_memory_seq_rm(memory, 0, count, -1):
            return count
        self._library.llama_memory_clear(memory, True)
        return 0

    def _row(self, index: int) -> NDArray[np.float32]:
        """Logits of a token of the last batch, by its place; -1: the last. They are llama.cpp's own memory."""
        row = self._library.llama_get_logits_ith(self._context, index)
        if not row:
            raise RazorError(f"llama.cpp gives no logits: {complaint()}")
        return np.ctypeslib.as_array(row, (self.vocabulary,))

    def _decode(self, tokens: Sequence[int], start: int, wanted: int) -> None:
        batch = self._library.llama_batch_init(len(tokens), 0, 1)
        try:
            if batch.embd or not all((batch.token, batch.pos, batch.n_seq_id, batch.seq_id, batch.logits)):
                raise _other_layout("llama_batch has other fields")
            batch.n_tokens = len(tokens)
            for index, token in enumerate(tokens):
                batch.token[index], batch.pos[index] = token, start + index
                batch.logits[index] = index >= wanted
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
            if failed := self._library.llama_decode(self._context, batch):
                raise RazorError(f"llama.cpp fails after {start} tokens ({failed}): {complaint()}")
        finally:
            self._library.llama_batch_free(batch)

    def close(self) -> None:
        """Free its memory."""
        if self._context:
            self._library.llama_free(self._context)
        if self._model:
            self._library.llama_model_free(self._model)
        self._context = self._model = None

    def __enter__(self) -> LlamaRuntime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _all_of(texts: Sequence[str], part: str) -> bool:
    """Whether there are texts, and all of them hold a part."""
    return bool(texts) and all(part in text for text in texts)


def _context_params(library: ctypes.CDLL, context: int, batch: int, kv: int, flash: bool | None) -> Params:
    """llama.cpp's defaults with our sizes, KV cache and flash attention in them.

    Raises:
        RazorError: the defaults are not where every known version has them.
    """
    params = library.llama_context_default_params()
    words = list(params.words[:40])
    null = [0] * 4
    caches = [
        i
        for i in range(20, 34)
        if words[i : i + 2] == [1, 1] and words[i - 4 : i] == null == words[i + 2 : i + 6]
    ]
    choices = [i for i in range(4, 16) if words[i : i + 4] == [-1] * 4]
    if words[:3] != [512, 2048, 512] or len(caches) != 1 or (flash is not None and len(choices) != 1):
        raise _other_layout(f"its defaults begin {words[:3]}")
    params.words[0], params.words[1], params.words[2] = context, batch, batch
    params.words[caches[0]] = params.words[caches[0] + 1] = kv
    if flash is not None:
        params.words[choices[0] + 3] = int(flash)
    return params


def _other_layout(seen: str) -> RazorError:
    return RazorError(
        f"This llama.cpp ({find_library()}, {version()}) has another interface than Razor knows ({seen}): install "
        f"xllamacpp 2026.10, or name another build's folder by {FOLDER}."
    )
