"""The table of scores: what each option would cost each matrix in quality, kept so that any budget is solved again.

It is one file of safetensors: for every target a tensor [options, rows] in fp32 (one column if the score speaks of
whole matrices), and in its header what was measured, of which model, in which formats and on how much text. A table
that is not finished is a smaller table, so measuring goes on where it stopped.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from razor.allocate.space import Space, Target
from razor.errors import RazorError, did_you_mean
from razor.storage import atomic_write, digest

SCORES = "scores.safetensors"
SCHEMA = 1


@dataclass(frozen=True)
class Measured:
    """What a table is of; two tables with the same of it are the same.

    Attributes:
        model: fingerprint of the model.
        score: name of the score.
        unit: of its numbers: "nats" or "squared error".
        setting: digest of the plan around the targets (embedding, activations, KV cache) and the compute dtype.
        text: digest of the text that was looked at; "" if none was.
        tokens: of that text.
    """

    model: str
    score: str
    unit: str
    setting: str
    text: str
    tokens: int

    def folder(self, space: Space) -> str:
        """A name for the folder of such a table of a space, in Razor's cache."""
        specs = {name: specs_of(target) for name, target in space.targets.items()}
        return digest([vars(self), specs, SCHEMA])


@dataclass
class ScoreTable:
    """Losses by target, option and row.

    Attributes:
        measured: of what.
        formats: by target, the spec of each option, in the order of the tensors' first dimension.
        losses: by target, [options, rows], or [options, 1] for whole matrices.
        seconds: that measuring took.
    """

    measured: Measured
    formats: dict[str, dict[str, Any]] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def by_rows(self) -> bool:
        """Whether it tells rows apart."""
        return any(loss.shape[1] > 1 for loss in self.losses.values())

    def add(self, target: Target, losses: Tensor) -> None:
        """Enter a target: [options, rows or 1], options in the target's order."""
        self.formats[target.name] = dict(specs_of(target))
        self.losses[target.name] = losses.detach().float().cpu().contiguous()

    def loss(self, target: Target, option: str) -> float:
        """Of a whole matrix in an option."""
        return float(self.rows(target, option).double().sum())

    def rows(self, target: Target, option: str) -> Tensor:
        """[rows] of a matrix in an option, or [1]."""
        return self.losses[target.name][list(self.formats[target.name]).index(option)]

    def check(self, space: Space, model: str, where: str) -> None:
        """Raise RazorError unless it is of this model and has every option of every target of a space."""
        if self.measured.model != model:
            raise RazorError(
                f"{where} holds scores of another model (fingerprint {self.measured.model}, wanted {model}): leave "
                "scores= out, and they are measured."
            )
        for name, target in space.targets.items():
            known = self.formats.get(name)
            if known is None:
                raise RazorError(f"{where} has no scores of '{name}': leave scores= out to measure them.")
            for option, spec in specs_of(target).items():
                if option not in known:
                    raise RazorError(
                        f"{where} has no scores of options '{option}'.{did_you_mean(option, known)}"
                    )
                if known[option] != spec:
                    raise RazorError(
                        f"{where} has scores of '{option}' as {known[option]}, but '{name}' would be held as "
                        f"{spec}: leave scores= out to measure them."
                    )

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        about = {"schema": SCHEMA, "seconds": self.seconds, "formats": self.formats} | vars(self.measured)
        with atomic_write(path) as temporary:
            save_file(self.losses, temporary, metadata={"razor": json.dumps(about)})

    @classmethod
    def load(cls, path: Path) -> ScoreTable:
        """Inverse of `save`.

        Raises:
            RazorError: no such file, or it holds no scores.
        """
        path = path / SCORES if path.is_dir() else path
        if not path.is_file():
            raise RazorError(f"There are no scores '{path}': razor allocate writes {SCORES} into its folder.")
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {})["razor"])
                losses = {name: file.get_tensor(name) for name in about["formats"]}  # in the model's order
            if about.pop("schema") != SCHEMA:
                raise KeyError("schema")
            formats, seconds = about.pop("formats"), about.pop("seconds")
            return cls(Measured(**about), formats, losses, seconds)
        except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
            raise RazorError(
                f"'{path}' holds no scores of razor allocate ({type(error).__name__}): remove it, or give another."
            ) from error

    def of_options(self, space: Space) -> Iterator[tuple[str, str, float]]:
        """Every target's loss in every option: (name, option, loss)."""
        for name, target in space.targets.items():
            for option in target.formats:
                yield name, option, self.loss(target, option)

    def write_csv(self, path: Path, space: Space) -> None:
        """A line for each target and option: weights, code bits, loss."""
        with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["module", "option", "weights", "code_bits", f"loss ({self.measured.unit})"])
            for name, option, loss in self.of_options(space):
                target = space.targets[name]
                bits = space.size(name, target.formats[option]).code_bits / target.weights
                writer.writerow([name, option, target.weights, f"{bits:.4g}", f"{loss:.6g}"])


def specs_of(target: Target) -> Mapping[str, Any]:
    """Option -> description of its format."""
    return {option: format.spec() for option, format in target.formats.items()}
