"""Text from a GGUF file of the teacher, written by llama.cpp.

Some teachers are at hand only as a GGUF, and on a Mac or a graphics card llama.cpp is fast. Its server
(`razor.models.llama_server`) writes many texts at once and continues to do so as texts end and others begin; here
each text is one request per turn, with token ids in and out, and its script (`sampling.py`) is played over what
comes back. So a text has the same turns, stops and limits as one that Transformers writes.

**What differs.** A GGUF mostly holds rounded weights and llama.cpp rounds activations to 8 bits too: this is the
text of another teacher, kept under another hash (that of the file's content). `top_p` counts among the `top_k`
likeliest tokens and not among all. A text has its own seed, but what else is computed in the same batch can
change the last bits and with them a token: a shard that has to be made again may come out different.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from razor.data.document import name_of
from razor.data.sampling import Sampling, Text
from razor.errors import RazorError
from razor.models.llama_server import LlamaServer

PROBE = "Plain text, <|im_start|>marks</s>, 12345 & ünïcödé:\n\n\tdone."
"""Two tokenizers that read this alike are taken for the same."""


class LlamaCpp:
    """A llama.cpp server in this process, for as long as the object lives.

    Args:
        gguf: the model's file.
        texts: how many are written at once.
        longest: most tokens of a text.
        tokenizer: the Transformers tokenizer the text is for.

    Raises:
        RazorError: the package is missing, the file is no model llama.cpp can read, its tokenizer is another
            one, or a text may get longer than the model reads.
    """

    def __init__(self, gguf: Path, texts: int, longest: int, tokenizer: Any) -> None:
        self._server = LlamaServer(
            gguf,
            context=longest,
            parallel=texts,
            kv="f16",
            threads=torch.get_num_threads(),
            key="data.source.gguf",
        )
        self._texts = texts
        self._check(gguf, longest, tokenizer)

    def write(
        self,
        texts: Sequence[Text],
        sampling: Sampling,
        seed: int,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Write the texts to the end of their scripts, in place; text i draws from `seed + i`."""
        with ThreadPoolExecutor(self._texts) as pool:
            jobs = [pool.submit(self._write, text, sampling, seed + n) for n, text in enumerate(texts)]
            for job in as_completed(jobs):
                used = job.result()
                if progress:
                    progress(used)

    def _write(self, text: Text, sampling: Sampling, seed: int) -> int:
        """Write one text; how many tokens were drawn for it."""
        used = 0
        while not text.done:
            turn = text.turn
            if turn is None:
                text.take(-1)  # a given token: what is drawn does not matter
                continue
            drawn = self._server.ask(
                "/completion",
                prompt=text.tokens,
                n_predict=turn.limit,
                seed=(seed + 1_000_003 * len(text.spans)) % 2**32,  # another one each turn
                return_tokens=True,
                cache_prompt=True,
                samplers=["top_k", "temperature", "top_p"],
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                logit_bias=self._never,
            )
            end = [self._eos] if self._eos in turn.stops else sorted(turn.stops)[:1]
            for token in [*drawn["tokens"], *end]:  # where it stopped without saying at what
                if text.turn is not turn:
                    break
                used += text.take(token)
        return used

    def _check(self, gguf: Path, longest: int, tokenizer: Any) -> None:
        facts = self._server.facts()
        ids = self._server.ask("/tokenize", content=PROBE, add_special=False, parse_special=True)["tokens"]
        own = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
        if ids != own or facts["n_vocab"] < len(tokenizer):
            raise RazorError(
                f"data.source.gguf='{gguf}' has another tokenizer than '{name_of(tokenizer)}' (vocabulary "
                f"{facts['n_vocab']}, not {len(tokenizer)}, or other splits): give the GGUF of this model."
            )
        if longest > facts["n_ctx_train"]:
            raise RazorError(
                f"The teacher reads at most {facts['n_ctx_train']} tokens, but a text may get {longest}: lower "
                "data.source.max_answer_tokens, max_user_tokens or max_prompt_tokens."
            )
        self._eos = tokenizer.eos_token_id
        self._never = [[token, False] for token in range(len(tokenizer), facts["n_vocab"])]
