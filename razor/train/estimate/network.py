"""A model in numbers, counted from its skeleton."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from razor.models import layers_of, shape_of
from razor.quant.anatomy import head_of
from razor.quant.sites import sites

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


def counted(skeleton: PreTrainedModel) -> dict[str, int]:
    """The fields of a `Network` that are sums over parameters, whatever the model reads."""
    everything = {id(p): p.numel() for p in skeleton.parameters()}
    inside = [{id(p): p.numel() for p in block.parameters()} for block in layers_of(skeleton)]
    within = {key for block in inside for key in block}
    head: Any = head_of(skeleton)
    return {
        "parameters": sum(everything.values()),
        "layers": len(inside),
        "layer": max(sum(block.values()) for block in inside),
        "outside": sum(size for key, size in everything.items() if key not in within),
        "largest": max(everything.values()),
        "head": head.weight.numel(),
    }


def text_network(skeleton: PreTrainedModel) -> Network:
    """Count a language model."""
    blocks, shape = layers_of(skeleton), shape_of(skeleton)
    config = skeleton.config.get_text_config()
    embedding: Any = skeleton.get_input_embeddings()
    part = _part_of_experts(config)
    matrices = sum(
        int(site.weight.numel() * (part if site.kind == "experts" else 1))
        for block in blocks
        for site in sites(block).values()
        if site.kind != "embedding"
    )
    return Network(
        **counted(skeleton),
        embedding=embedding.weight.numel(),
        matrices=matrices,
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
