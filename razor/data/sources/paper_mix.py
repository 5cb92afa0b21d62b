"""The text of the published recipe: instructions of several sets, with or without benchmark questions in them.

Nine of the fourteen tasks of the paper's table have their train splits in its training text, in the form in which
the test asks. That lifts scores on these tasks; a comparison with models that have not seen them needs the run
without, or a baseline trained on the same text. So it is a switch here, and what it says is part of every run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from razor.data.sources.hub_benchmarks import said_of
from razor.data.sources.source_mix import SourceMix
from razor.errors import RazorError

BENCHMARKS = "benchmarks"
"""Name of the part that can be left out."""


class PaperMix(SourceMix):
    """A mix with a part `benchmarks` that can be left out.

    Args:
        parts, tokens, when_short: see `SourceMix`.
        benchmarks_in_training: whether that part is in it.

    Raises:
        RazorError: it is to be in it, but there is none; or see `SourceMix`.
    """

    def __init__(
        self,
        parts: Mapping[str, Mapping[str, Any]],
        benchmarks_in_training: bool,
        tokens: int | None = None,
        when_short: str = "error",
    ) -> None:
        if not isinstance(benchmarks_in_training, bool):
            raise RazorError(
                f"data.source.benchmarks_in_training={benchmarks_in_training} must be true or false."
            )
        if benchmarks_in_training and BENCHMARKS not in parts:
            raise RazorError(
                f"data.source.benchmarks_in_training=true, but data.source.parts has no '{BENCHMARKS}'."
            )
        self.benchmarks_in_training = benchmarks_in_training
        chosen = {name: part for name, part in parts.items() if benchmarks_in_training or name != BENCHMARKS}
        super().__init__(chosen, tokens, when_short)
        self.benchmarks = self.benchmarks or []

    def tell(self, used: Any, available: Any) -> str:
        """The line about shares, and one about the benchmarks."""
        return f"{super().tell(used, available)}\n{said_of(self.benchmarks or [])}"
