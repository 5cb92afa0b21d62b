"""What a run is, as far as its needs go: models, formats, losses, shapes, processes.

Nothing here holds a weight. A `Case` is made of descriptions, and can be changed to ask what would help
(`dataclasses.replace`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from razor.distill import Objective
from razor.errors import RazorError
from razor.evals import Benchmark, Classification
from razor.models import ModelSource
from razor.quant import Plan
from razor.train.settings import STRATEGIES, TrainSettings

if TYPE_CHECKING:
    from razor.train.teaching import Teaching


@dataclass(frozen=True)
class Case:
    """A run to be estimated.

    Attributes:
        model: what becomes the student.
        teacher: the 16-bit model that the student is scored against, and usually taught by.
        plan: formats of the student.
        objective: the losses.
        dtype: of activations and quantized weights, and of the teacher.
        cached: "sampled" or "topk" targets in place of a teacher, which is then loaded for scoring alone; None: the
            teacher stays in memory.
        rows, length: of a micro-batch; of images rows of length 1: an image counts as one token.
        image: (channels, height, width) of an image; () for text.
        accumulate: micro-batches of an optimizer step, in all processes together.
        steps: optimizer steps.
        device: "cpu" or "cuda".
        strategy: how processes share the work, one of `STRATEGIES`.
        processes, nodes: all of them, and machines they are on.
        shard_teacher: fsdp2: the teacher is cut too.
        checkpointing: layers run again in the backward pass instead of keeping what they made.
        offload: what layers made waits in the machine's memory, not the GPU's.
        scored: rows that benchmarks score at once; 0: held-out text alone is scored.
    """

    model: ModelSource
    teacher: ModelSource
    plan: Plan
    objective: Objective
    dtype: torch.dtype = torch.bfloat16
    cached: str | None = None
    rows: int = 1
    length: int = 512
    image: tuple[int, ...] = ()
    accumulate: int = 1
    steps: int = 1
    device: str = "cpu"
    strategy: str = "single"
    processes: int = 1
    nodes: int = 1
    shard_teacher: bool = True
    checkpointing: bool = False
    offload: bool = False
    scored: int = 0

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise RazorError(f"strategy='{self.strategy}'. Choices: {', '.join(STRATEGIES)}.")
        for key in ("rows", "length", "accumulate", "steps", "processes", "nodes"):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise RazorError(f"{key}={value} must be a whole number of at least 1.")
        if self.strategy == "single" and self.processes > 1:
            raise RazorError(
                f"strategy=single is one process, not {self.processes}: "
                "give strategy=ddp, fsdp2 or deepspeed_zero2."
            )
        if self.processes % self.nodes:
            raise RazorError(f"processes={self.processes} cannot be spread evenly over nodes={self.nodes}.")

    @property
    def taught(self) -> bool:
        """Whether the teacher runs in every step."""
        return self.cached is None and self.objective.needs_teacher

    @property
    def unit(self) -> str:
        """What a token of this case is: "token", or "image", which counts as one."""
        return "image" if self.image else "token"

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch."""
        return self.rows * self.length

    @property
    def total_tokens(self) -> int:
        """Tokens of the whole run, in all processes."""
        return self.tokens * self.accumulate * self.steps

    @property
    def item(self) -> int:
        """Bytes of a number in the compute dtype."""
        return self.dtype.itemsize

    @property
    def per_node(self) -> int:
        """Processes on one machine."""
        return self.processes // self.nodes


def case_of(
    teaching: Teaching, plan: Plan, objective: Objective, rows: int, benchmark: Benchmark | Classification
) -> Case:
    """The case of a run that was composed: models, length and settings of `teaching`, micro-batches of `rows`."""
    settings: TrainSettings = teaching.settings
    return Case(
        model=teaching.model,
        teacher=teaching.teacher,
        plan=plan,
        objective=objective,
        dtype=settings.dtype,
        cached=teaching.cached.kept.kind if teaching.cached else None,
        rows=rows,
        length=teaching.sequence_length,
        image=teaching.source.shape,
        accumulate=settings.micro_batches,
        steps=settings.max_steps,
        device=settings.device.type,
        strategy=settings.strategy,
        processes=settings.processes,
        nodes=settings.nodes,
        shard_teacher=settings.shard_teacher,
        checkpointing=settings.gradient_checkpointing,
        offload=settings.offload_activations,
        scored=benchmark.batch_size if benchmark.tasks else 0,
    )
