"""What is known of a run's models from their skeletons: counts, widths, and what autograd would keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from razor.models import layers_of, shape_of
from razor.quant import measure
from razor.quant.float16 import Float16
from razor.quant.sites import sites
from razor.train.estimate.case import Case
from razor.train.estimate.saved import Saved, meta_student, saved

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Network:
    """A model in numbers.

    Attributes:
        parameters: all of them, a tied one once.
        layers: number of decoder layers.
        layer: parameters of the largest of them.
        outside: parameters that belong to none: embedding, head, final norm.
        largest: parameters of the largest matrix.
        embedding: of the input embedding.
        matrices: parameters of the layers that a token is multiplied with (of a mixture: of the experts it meets).
        head: parameters of the output head.
        width, vocabulary, heads: of hidden states and logits; queries' width of all heads together.
        attention: width of queries, keys and values of a layer together.
    """

    parameters: int
    layers: int
    layer: int
    outside: int
    largest: int
    embedding: int
    matrices: int
    head: int
    width: int
    vocabulary: int
    heads: int
    attention: int


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
            (network(skeleton), network(other)),
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
            self._saved[key] = saved(self._student, *key)
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


def network(skeleton: PreTrainedModel) -> Network:
    """Count a model."""
    blocks, shape = layers_of(skeleton), shape_of(skeleton)
    config = skeleton.config.get_text_config()
    everything = {id(p): p.numel() for p in skeleton.parameters()}
    inside = [{id(p): p.numel() for p in block.parameters()} for block in blocks]
    within = {key: size for block in inside for key, size in block.items()}
    head: Any = skeleton.get_output_embeddings()
    embedding: Any = skeleton.get_input_embeddings()
    part = _part_of_experts(config)
    matrices = sum(
        int(site.weight.numel() * (part if site.kind == "experts" else 1))
        for block in blocks
        for site in sites(block).values()
        if site.kind != "embedding"
    )
    return Network(
        parameters=sum(everything.values()),
        layers=len(blocks),
        layer=max(sum(block.values()) for block in inside),
        outside=sum(size for key, size in everything.items() if key not in within),
        largest=max(everything.values()),
        embedding=embedding.weight.numel(),
        matrices=matrices,
        head=head.weight.numel(),
        width=config.hidden_size,
        vocabulary=config.vocab_size,
        heads=shape.heads * shape.head_dim,
        attention=(shape.heads + 2 * shape.kv_heads) * shape.head_dim,
    )


def _part_of_experts(config: object) -> float:
    """Of a mixture's experts, those that a token meets."""
    met = getattr(config, "num_experts_per_tok", None)
    every = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    return met / every if met and every else 1.0
