"""lm-eval's Hugging Face model, several times cheaper on a CPU.

A multiple-choice row asks for the log-likelihood of each of its answers after the same question.
lm-eval runs question + answer once per answer, and turns every position into probabilities over the
vocabulary. Here all answers of a question share one sequence (see `packing.py`), and the
vocabulary projection runs on the scored positions alone. Questions are read once, a one-token
answer costs nothing, and fake quantization of the weights is paid once per batch of rows. Scores
are those of lm-eval's `HFLM(softmax_dtype="float32")`, up to the rounding that any change of batch
shape brings. Models whose attention does not take such a mask run through plain HFLM.
"""

from __future__ import annotations

from contextlib import redirect_stderr
from typing import Any, TextIO

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor, nn

from razor import processes
from razor.errors import RazorError
from razor.evals.packing import Packed, batches, pack, share_contexts
from razor.terminal import progress_bar

Answer = tuple[float, bool]
"""(log-likelihood in nats, whether greedy decoding would give it)."""


class BorrowedModel:
    """Stands in for a model where lm-eval must not touch it.

    HFLM calls `eval()` and `tie_weights()` on any nn.Module it gets; re-tying could undo what a
    quantized student does with its embedding and head.
    """

    def __init__(self, model: nn.Module) -> None:
        self.module = model
        self.device = next(model.parameters()).device

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own forward pass."""
        return self.module(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


def scored_logits(model: Any, packed: Packed) -> tuple[Tensor, Tensor]:
    """Logits [U, V] of the distinct scored positions, and [N] the row of each scored token in them.

    A hook on the output embedding drops all other positions before the projection; whatever the
    model does to its logits afterwards (scaling, soft-capping) stays as it is.
    """
    distinct, row_of = torch.unique(packed.where, return_inverse=True)

    def keep_scored(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return args[0].flatten(0, 1)[distinct][None], *args[1:]

    handle = model.get_output_embeddings().register_forward_pre_hook(keep_scored)
    try:
        with torch.no_grad():
            output = model(
                input_ids=packed.tokens,
                attention_mask=packed.mask(),
                position_ids=packed.positions,
                use_cache=False,
            )
    finally:
        handle.remove()
    return output.logits[0], row_of


def check_room(requests: Any, most: int) -> None:
    """Raise RazorError if a task asks for answers that leave no room for its question."""
    for request in requests:
        wanted = int(request.args[1].get("max_gen_toks", 0))
        if wanted >= most:
            raise RazorError(
                f"Task '{request.task_name}' asks for answers of up to {wanted} tokens, and the model reads "
                f"{most}: leave it out of evals.tasks."
            )


class SharedContextLM(HFLM):
    """HFLM on a model in memory that reads each context once.

    Args:
        model: a causal language model of Transformers' interface, on any device; it is not changed.
        tokenizer: its tokenizer; HFLM may give it a padding token, so pass a copy.
        batch_size: rows per forward pass.
        console: where the one progress bar goes; None for no bar.
        description: the bar's text.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        batch_size: int = 32,
        console: TextIO | None = None,
        description: str = "lm-eval",
    ) -> None:
        super().__init__(
            pretrained=BorrowedModel(model),
            tokenizer=tokenizer,
            batch_size=batch_size,
            softmax_dtype="float32",  # bf16 log-probabilities would be worth two digits
            enable_thinking=False,  # a template that asks (Qwen3's) is told to let the model answer at once
        )
        self.console = console
        self.description = description
        self._rank, self._world_size = processes.rank(), processes.world()  # HFLM leaves that to accelerate

    def all_gather(self, tensor: Tensor) -> Tensor:
        """[processes] a number of every process."""
        return torch.tensor(processes.gathered(tensor.item()))

    def barrier(self) -> None:
        """Wait for the others."""
        processes.wait()

    def shares_contexts(self) -> bool:
        """Whether the model's attention can be told, by a 4-D mask, who sees whom."""
        model, config = self._model.module, self._config
        attention = str(getattr(config, "_attn_implementation", "eager"))
        layers = set(getattr(config, "layer_types", None) or ["full_attention"])
        return (
            self.backend == "causal"
            and bool(getattr(model, "_supports_attention_backend", False))
            and not getattr(model, "_is_stateful", False)
            and not attention.startswith(("eager", "flash", "flex", "paged"))
            and layers == {"full_attention"}
            and getattr(config, "sliding_window", None) is None
            and model.get_output_embeddings() is not None
        )

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[Answer]:
        """(log-likelihood in nats, whether greedy) per request."""
        if not self.shares_contexts() and self.console is not None:
            with redirect_stderr(self.console):
                return super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return super().loglikelihood(requests, disable_tqdm=True)  # ours replaces lm-eval's bars

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """lm-eval's own generation, its progress bar on our console.

        Raises:
            RazorError: an answer may become as long as all that the model can read.
        """
        check_room(requests, self.max_length)
        if self.console is None:
            return super().generate_until(requests, disable_tqdm=True)
        with redirect_stderr(self.console):
            return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        if not self.shares_contexts():
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        answers: list[Answer] = [(0.0, False)] * len(requests)
        hidden = self.console is None
        with progress_bar(
            self.description, len(requests), "answer", stream=self.console, hidden=hidden
        ) as bar:
            for rows in batches(share_contexts(requests, self.max_length), int(self.batch_size)):
                packed = pack(rows, self._model.device)
                for index, answer in zip(packed.requests, self._score(packed), strict=True):
                    answers[index] = answer
                bar.update(len(packed.requests))
        return answers

    def _score(self, packed: Packed) -> list[Answer]:
        """One answer per request; fp32 probabilities, a few hundred positions at a time."""
        logits, row_of = scored_logits(self._model.module, packed)
        values, greedy = [], []
        for rows, targets in zip(row_of.split(256), packed.targets.split(256), strict=True):
            log_probs = logits[rows].float().log_softmax(-1)
            values.append(log_probs.gather(1, targets[:, None])[:, 0])
            greedy.append(log_probs.argmax(-1) == targets)
        pieces = zip(
            torch.cat(values).cpu().split(packed.counts),
            torch.cat(greedy).cpu().split(packed.counts),
            strict=True,
        )
        return [(float(value.sum()), bool(hit.all())) for value, hit in pieces]

    def get_model_info(self) -> dict[str, Any]:
        """Empty: lm-eval would ask the hub for the commit of a model that has no name there."""
        return {}
