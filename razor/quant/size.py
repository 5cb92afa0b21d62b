"""How large a plan makes a model, without weights: exact bits from shapes.

Two accountings stand side by side. The *paper's* counts a trit as 1.58 bits and one 16-bit scale per group;
its ratio is 16 * parameters / stored bits over all parameters, a tied embedding counted once
(arXiv 2605.04062). The one *on disk* counts the bytes that the packed tensors really take (1.6 bits a trit,
rows padded to whole bytes).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from razor.quant.plan import Plan


@dataclass(frozen=True)
class Size:
    """Stored size of some parameters.

    Attributes:
        parameters: their number.
        code_bits: bits of their codes (paper's accounting).
        scale_bits: bits of their scales.
        bytes_disk: bytes of the packed tensors.
    """

    parameters: int = 0
    code_bits: float = 0.0
    scale_bits: float = 0.0
    bytes_disk: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(
            self.parameters + other.parameters,
            self.code_bits + other.code_bits,
            self.scale_bits + other.scale_bits,
            self.bytes_disk + other.bytes_disk,
        )

    @property
    def bits(self) -> float:
        """All stored bits by the paper's accounting."""
        return self.code_bits + self.scale_bits

    @property
    def bits_per_weight(self) -> float:
        """Stored bits / parameters."""
        return self.bits / self.parameters if self.parameters else math.nan

    @property
    def ratio_paper(self) -> float:
        """Compression against 16 bits a parameter, by the paper's accounting."""
        return 16 * self.parameters / self.bits

    @property
    def ratio_disk(self) -> float:
        """Compression against 16 bits a parameter, by the bytes of the packed tensors."""
        return 2 * self.parameters / self.bytes_disk


@dataclass(frozen=True)
class ModelSize:
    """Sizes by the three parts that the paper treats differently.

    Attributes:
        linear: the decoder's linear weights; their mean code bits are the nominal width (2.79, 1.88, ...).
        embedding: embedding and output head.
        rest: norms and biases.
    """

    linear: Size
    embedding: Size
    rest: Size

    @property
    def total(self) -> Size:
        """Everything."""
        return self.linear + self.embedding + self.rest

    @property
    def code_bits(self) -> float:
        """Mean code bits over the decoder's linear weights, the nominal width."""
        return self.linear.code_bits / self.linear.parameters


def measure(model: nn.Module, plan: Plan) -> ModelSize:
    """Size of `model` (any device, also meta) under `plan`; each parameter is counted once."""
    seen: set[int] = set()
    parts = {"linear": Size(), "embedding": Size(), "rest": Size()}
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    embeddings |= {id(head.weight)} if head is not None else set()
    for name, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            planned = own == "weight" and name in plan.modules
            format = plan.modules[name].weights if planned else plan.rest
            part = ("embedding" if id(parameter) in embeddings else "linear") if planned else "rest"
            shape = tuple(parameter.shape)
            parts[part] += Size(
                parameter.numel(),
                format.code_bits(shape),
                format.scale_bits(shape),
                format.packed_bytes(shape),
            )
    return ModelSize(**parts)
