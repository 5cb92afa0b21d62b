"""Keep some weights as they are for a part of the run.

For instance the embedding during the first fifth, while everything above it finds its feet in few bits. A frozen
weight gets no step, no momentum and no weight decay: its gradient is dropped before the optimizer looks. The
backward pass still makes it, so freezing saves no time; in exchange it works under every trainer and can change at
any step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import nn

from razor.errors import RazorError
from razor.quant import Format
from razor.recipe.override import matching
from razor.train.callbacks.base import RunCallback, RunFacts, check_part

EXAMPLE = "[{names: '*.embed_tokens', until: 0.2}]"


@dataclass(frozen=True)
class Rule:
    """What is frozen, and from which part of the run, 0..1, until which (not included)."""

    names: str
    start: float
    until: float

    def holds(self, done: int, steps: int) -> bool:
        """Whether the step after `done` steps lies within."""
        return math.ceil(self.start * steps) <= done < math.ceil(self.until * steps)


class Freeze(RunCallback):
    """Freezes modules by the pattern of their names. Tied weights are one weight.

    Args:
        rules: each {names, start, until}: a pattern as in quant.overrides (`*.embed_tokens`, `model.layers.0.*`,
            `re:...`), and parts of the run, 0..1, by default all of it.

    Raises:
        RazorError: no rules, or one that is none.
    """

    def __init__(self, rules: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        if isinstance(rules, (str, Mapping)) or not rules:
            raise RazorError(f"callbacks.freeze.rules='{rules}' must be a list of rules, as {EXAMPLE}.")
        self.rules = [_rule(number, rule) for number, rule in enumerate(rules)]

    def check(self, run: RunFacts) -> None:
        """Raise RazorError if a pattern matches nothing, or nothing would be trained at some step."""
        everything = {id(p) for p in run.student.parameters() if p.requires_grad}
        frozen = self._parameters(run.student)
        for moment in {rule.start for rule in self.rules}:
            held = {
                id(p)
                for rule, parameters in zip(self.rules, frozen, strict=True)
                if rule.start <= moment < rule.until
                for p in parameters
            }
            if held >= everything:
                raise RazorError(
                    f"callbacks.freeze.rules freeze everything at {moment:g} of the run: leave something to train."
                )

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check with the real student.

        Raises:
            RazorError: under DeepSpeed, which keeps gradients to itself.
        """
        super().on_fit_start(trainer, pl_module)
        if isinstance(trainer.strategy, DeepSpeedStrategy):
            raise RazorError(
                "callbacks=freeze drops gradients, which DeepSpeed keeps to itself: trainer=ddp."
            )

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Drop the gradients of what is frozen now."""
        frozen = self._parameters(pl_module.student)  # type: ignore[arg-type]
        for rule, parameters in zip(self.rules, frozen, strict=True):
            if rule.holds(trainer.global_step, trainer.max_steps):
                for parameter in parameters:
                    parameter.grad = None

    def _parameters(self, student: nn.Module) -> list[list[nn.Parameter]]:
        """What each rule is about."""
        owners: dict[str, list[nn.Parameter]] = {}
        inside: tuple[str, ...] = ()
        for name, module in student.named_modules():
            if isinstance(module, Format):
                inside += (f"{name}.",)  # learned scales go with the module whose weight they scale
            elif not name.startswith(inside) and next(module.parameters(recurse=False), None) is not None:
                owners[name] = list(module.parameters())
        return [
            [p for name in matching(rule.names, owners, "callbacks.freeze.rules") for p in owners[name]]
            for rule in self.rules
        ]


def _rule(number: int, rule: Any) -> Rule:
    where = f"freeze.rules[{number}]"
    if not isinstance(rule, Mapping) or not isinstance(rule.get("names"), str):
        raise RazorError(f"callbacks.{where}='{rule}' must be a rule, as {EXAMPLE}.")
    if unknown := sorted(set(rule) - {"names", "start", "until"}):
        raise RazorError(f"callbacks.{where} has no key '{unknown[0]}'. Choices: names, start, until.")
    start = check_part(f"{where}.start", rule.get("start", 0.0))
    until = check_part(f"{where}.until", rule.get("until", 1.0))
    if start >= until:
        raise RazorError(
            f"callbacks.{where} starts at {start:g} and ends at {until:g}: start must come first."
        )
    return Rule(rule["names"], start, until)
