"""lm-eval's questions, answered by llama.cpp: the scores of a GGUF as people run it.

The library gives full logits, so a log-likelihood is what it is everywhere: the log-probabilities of an answer's
tokens, in fp32. Requests are sorted by their tokens, so answers of one question and prompts that begin alike follow
each other, and what they share is read once. Answers that are written out come from llama.cpp's server, greedily.
Words are cut into tokens by llama.cpp too: whatever its tokenizer does otherwise than Transformers' is part of the
score. No token is put in front of a text, as lm-eval's own model does by default.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import numpy as np
from lm_eval.api.model import TemplateLM
from numpy.typing import NDArray

from razor.errors import RazorError
from razor.evals.gguf_facts import GGUFFacts
from razor.evals.shared_context import Answer, check_room
from razor.models.llama_process import LlamaProcess
from razor.models.llama_server import LlamaServer, cores
from razor.terminal import progress_bar

ANSWER = 256
"""Most tokens of an answer where a task does not say: lm-eval's number."""


class LlamaLM(TemplateLM):
    """A GGUF file behind lm-eval's interface.

    Args:
        gguf: the file.
        facts: what it says about itself.
        context: most tokens of a question and its answer; what is longer loses its left end.
        kv: type of the KV cache: "q8_0" (the KV8 that students are trained with, in blocks of 32) or "f16".
        threads: of the CPU; None: the cores that this process may use.
        console: where progress bars go; None for no bar.
        description: the bar's text.

    Raises:
        RazorError: llama.cpp is missing, or does not open the file.
    """

    def __init__(
        self,
        gguf: Path,
        facts: GGUFFacts,
        context: int = 4096,
        kv: str = "q8_0",
        threads: int | None = None,
        console: TextIO | None = None,
        description: str = "lm-eval",
    ) -> None:
        super().__init__()
        self.gguf, self.facts, self.kv, self.threads = gguf, facts, kv, threads or cores()
        self.longest = min(context, facts.reads or context)
        self.console, self.description = console, description
        self.tokenizer = SimpleNamespace(chat_template=facts.chat_template)
        self._llama = LlamaProcess(gguf, self.longest, kv, threads=self.threads)
        self._server: LlamaServer | None = None
        self._read: list[int] = []
        self._found: tuple[int, NDArray[np.float32]] | None = None

    def close(self) -> None:
        """Free its memory."""
        self._llama.close()
        if self._server is not None:
            self._server.close()

    @property
    def tokenizer_name(self) -> str:
        """Of whose chat template prompts are written in."""
        return str(self.gguf)

    @property
    def eot_token_id(self) -> int:
        """What ends a text."""
        return self.facts.eos if self.facts.eos is not None else 0

    @property
    def prefix_token_id(self) -> int:
        """What stands for an empty question."""
        return self.facts.bos if self.facts.bos is not None else self.eot_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Tokens of a text, without one that begins it; marks such as <|im_end|> are tokens."""
        return self._llama.tokenize(string, bool(add_special_tokens))

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[Answer]:
        answers: list[Answer] = [(0.0, False)] * len(requests)
        hidden = self.console is None
        with progress_bar(
            self.description, len(requests), "answer", stream=self.console, hidden=hidden
        ) as bar:
            for index in sorted(range(len(requests)), key=lambda i: requests[i][1] + requests[i][2]):
                _, context, answer = requests[index]
                answers[index] = self._score(context, answer)
                bar.update(1)
        return answers

    def _score(self, context: list[int], answer: list[int]) -> Answer:
        """Log-likelihood (nats) of an answer after a context, and whether it is the likeliest."""
        tokens = (context + answer)[-(self.longest + 1) :][:-1]
        first = len(tokens) - len(answer)
        if first < 0:
            raise RazorError(
                f"An answer of {len(answer)} tokens, and llama.cpp reads {self.longest}: context=..."
            )
        if self._found is None or self._read != tokens or self._found[0] != first:
            kept, self._read = common_start(tokens, self._read), []  # nothing, should it fail
            self._found = first, self._llama.logits(tokens, first, min(kept, first))
            self._read = tokens  # answers of one token differ in what is looked up alone
        logits = self._found[1]
        values = log_softmax(logits)[np.arange(len(answer)), answer]
        return float(values.sum()), bool((logits.argmax(-1) == answer).all())

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Greedy answers, each up to the first of its stop words."""
        check_room(requests, self.longest)
        if self._server is None:
            self._server = LlamaServer(
                self.gguf, context=self.longest, kv=self.kv, threads=self.threads, key="target"
            )
        found = []
        hidden = self.console is None
        with progress_bar(self.description, len(requests), "text", stream=self.console, hidden=hidden) as bar:
            for request in requests:
                question, options = request.args
                found.append(self._write(question, dict(options)))
                bar.update(1)
        return found

    def _write(self, question: str, options: dict[str, Any]) -> str:
        assert self._server is not None
        if options.get("do_sample") or options.get("temperature", 0.0):
            raise RazorError("A GGUF is scored greedily: tasks that draw their answers cannot be asked.")
        count, stops = int(options.get("max_gen_toks", ANSWER)), options.get("until") or []
        stops = [stops] if isinstance(stops, str) else [*stops]
        stops += [self.facts.eos_text] if self.facts.eos_text else []
        answer = self._server.ask(
            "/completion",
            prompt=self.tok_encode(question)[-(self.longest - count) :],
            n_predict=count,
            temperature=0.0,
            samplers=["temperature"],
            stop=stops,
            cache_prompt=True,
        )
        text = str(answer["content"])
        for stop in stops:  # as lm-eval cuts: whichever comes first in the text
            text = text.split(stop)[0] if stop else text
        return text

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Not here: perplexities of whole texts belong to no task of ours."""
        raise RazorError("Tasks that ask for the perplexity of whole texts are not scored on a GGUF.")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as the file's own template writes it; the model is told to answer at once."""
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered: Any = render_jinja_template(
            [chat_history],
            chat_template=self.facts.chat_template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            enable_thinking=False,
            bos_token=self.facts.bos_text,
            eos_token=self.facts.eos_text,
        )
        return str(rendered[0][0])


def common_start(one: list[int], other: list[int]) -> int:
    """How many elements two lists begin with in common."""
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log-probabilities [rows, vocabulary] of logits."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    total: NDArray[np.float64] = np.exp(shifted).sum(-1, keepdims=True)
    return shifted - np.log(total)
