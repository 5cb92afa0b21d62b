"""What the teacher settles for one micro-batch, before the student runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from razor.distill.teacher_logits import TeacherLogits
from razor.distill.trace import Needs


@dataclass
class Observation:
    """What the teacher settles for one micro-batch, before the student runs.

    Attributes:
        facts: per loss name, what its formula needs (EAKLD: gamma).
        layers: per loss name, the teacher's layers to compare.
        needs: what to record of the student.
        compared: what of the teacher's record is compared; the rest has been looked at and can go.
        logits: the teacher's; None if there is no teacher, or nothing compares with them.
        statistics: worth logging.
    """

    facts: dict[str, dict[str, float]] = field(default_factory=dict)
    layers: dict[str, list[int]] = field(default_factory=dict)
    needs: Needs = field(default_factory=Needs)
    compared: Needs = field(default_factory=Needs)
    logits: TeacherLogits | None = None
    statistics: dict[str, float] = field(default_factory=dict)
