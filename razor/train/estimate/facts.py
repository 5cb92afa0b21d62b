"""What is known of a run's models from their skeletons: counts, widths, and what autograd would keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from razor.models import shape_of
from razor.quant import measure
from razor.quant.float16 import Float16
from razor.quant.sites import sites
from razor.train.estimate.case import Case
from razor.train.estimate.images import image_network
from razor.train.estimate.network import Network, text_network
from razor.train.estimate.saved import Saved, meta_student, saved

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Facts:
    """Both models of a case.

    Attributes:
        student, teacher: in numbers.
        quantized: parameters of the student in fewer than 16 bits.
        learned: parameters beyond the model's own: scales of formats, projections of losses.
        saved: what the student keeps for its backward pass.
        packed: bytes of the packed model.
    """

    student: Network
    teacher: Network
    quantized: int
    learned: int
    saved: Saved
    packed: int


class Skeletons:
    """Both models of a case without numbers, and what was asked of them; cases of the same models share them.

    Args:
        case: one of them.
    """

    def __init__(self, case: Case) -> None:
        skeleton = case.model.skeleton()
        other = skeleton if case.teacher is case.model else case.teacher.skeleton()
        self._shapes, self._networks = (
            (shape_of(skeleton), shape_of(other)),
            (network(skeleton, case), network(other, case)),
        )
        self._quantized, self._packed = (
            _below_16(skeleton, case),
            measure(skeleton, case.plan).total.bytes_disk,
        )
        self._student = meta_student(skeleton, case.plan, case.dtype)
        self._saved: dict[tuple[Any, ...], Saved] = {}

    def facts(self, case: Case) -> Facts:
        """What is known of a case.

        Raises:
            RazorError: its losses do not fit the models.
        """
        own, theirs = self._networks
        case.objective.fit(self._shapes[0], self._shapes[1] if case.taught else None)
        key = (case.rows, case.length, case.device, case.checkpointing)
        if key not in self._saved:
            self._saved[key] = saved(self._student, *key, image=case.image)
        learned = sum(p.numel() for p in self._student.parameters()) - own.parameters
        learned += sum(p.numel() for p in case.objective.parameters())
        return Facts(own, theirs, self._quantized, learned, self._saved[key], self._packed)


def facts_of(case: Case) -> Facts:
    """Look at both models of one case."""
    return Skeletons(case).facts(case)


def _below_16(skeleton: PreTrainedModel, case: Case) -> int:
    """Parameters that the plan holds in fewer than 16 bits; tied ones once."""
    found = sites(skeleton)
    names = [name for name, place in case.plan.modules.items() if not isinstance(place.weights, Float16)]
    return sum({id(found[name].weight): found[name].weight.numel() for name in names}.values())


def network(skeleton: PreTrainedModel, case: Case) -> Network:
    """Count a model that reads what the case's data is."""
    return image_network(skeleton, case.image) if case.image else text_network(skeleton)
