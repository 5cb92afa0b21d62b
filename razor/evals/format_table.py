"""`razor formats`: every number format that ships, what it costs, what it loses and who else can store it.

The loss is the relative error sqrt(sum (x - q)^2 / sum x^2) of rounding at groups of 64, on numbers of a
Gaussian and a Laplace distribution and, if asked for, on all decoder matrices of a real model. It says what
rounding destroys, not what training brings back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from razor.models import ModelSource
from razor.quant import Float16, Format, Grouped, Integer
from razor.quant.anatomy import head_of
from razor.quant.holders import compressed_tensors_bits, gguf_types, gptq_bits

GROUPS: tuple[int | str, ...] = (32, 64, 128, 256, "row")
SHAPE = (1024, 4096)
"""A matrix to state bits for; "row" is then a group of 4,096."""

ERROR_GROUP = 64


def at_group(format: Format, group: int | str) -> Format:
    """The same format with another group."""

    def changed(spec: Any) -> Any:
        if not isinstance(spec, Mapping):
            return spec
        return {key: group if key == "group" else changed(value) for key, value in spec.items()}

    return Format.from_spec(changed(format.spec()))


def drawn(kind: str) -> Tensor:
    """[1024, 1024] numbers of a distribution; seeded."""
    generator = torch.Generator().manual_seed(0)
    if kind == "Gaussian":
        return torch.randn(1024, 1024, generator=generator)
    halves = torch.rand(1024, 1024, generator=generator, dtype=torch.float64) - 0.5
    return (
        -halves.sign() * (1 - 2 * halves.abs()).log()
    ).float()  # Laplace, by the inverse of its distribution


def relative_error(format: Format, matrices: Iterable[Tensor]) -> float:
    """sqrt(sum (x - q)^2 / sum x^2) over all matrices [rows, columns]."""
    lost = total = 0.0
    for x in matrices:
        lost += float((format.quantize(x.float()) - x.float()).square().sum())
        total += float(x.float().square().sum())
    return math.sqrt(lost / total)


def decoder_matrices(source: ModelSource) -> Callable[[], Iterable[Tensor]]:
    """The weights of every linear layer of a model but its head.

    Raises:
        RazorError: the rows of one are no multiple of 64.
    """
    model = source.load(torch.bfloat16)
    head = head_of(model)
    found = {
        name: module.weight.detach()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    for name, weight in found.items():
        Integer(4, ERROR_GROUP).check(weight.shape, name)
    return found.values


def levels(format: Format) -> str:
    """How many different values a group can have."""
    return str(format.highest - format.lowest + 1) if isinstance(format, Grouped) else "65,536"


def _held(types: Mapping[str, float]) -> str:
    if not types:
        return "-"
    name, bits = next(iter(types.items()))
    others = f" (+{', '.join(list(types)[1:])})" if len(types) > 1 else ""
    return f"{name} {bits:g}{others}"


def _row(name: str, format: Format, samples: Mapping[str, Callable[[], Iterable[Tensor]]]) -> list[str]:
    weights = math.prod(SHAPE)
    small, large = at_group(format, ERROR_GROUP), at_group(format, 256)
    columns = SHAPE[1]
    return [
        f"`{name}`",
        levels(format),
        *(f"{at_group(format, group).bits(SHAPE) / weights:.3f}" for group in GROUPS),
        *(f"{relative_error(small, sample()):.4f}" for sample in samples.values()),
        _held(gguf_types(small, columns)),
        _held(gguf_types(large, columns)),
        *(
            "-" if isinstance(format, Float16) or bits is None else f"{bits} bits"
            for bits in (gptq_bits(small, columns), compressed_tensors_bits(small, columns))
        ),
    ]


def format_table(
    formats: Mapping[str, Format], matrices: Callable[[], Iterable[Tensor]] | None = None, model: str = ""
) -> str:
    """A Markdown table of formats by option name.

    Args:
        formats: by name.
        matrices: gives the decoder's matrices of a real model whose rows 64 divides; None leaves that column out.
        model: its name.
    """
    samples: dict[str, Callable[[], Iterable[Tensor]]] = {
        kind: lambda kind=kind: [drawn(kind)]  # type: ignore[misc]
        for kind in ("Gaussian", "Laplace")
    }
    if matrices is not None:
        samples[model] = matrices
    head = ["format", "levels", *(f"bits at {g}" for g in GROUPS), *(f"error, {kind}" for kind in samples)]
    head += ["GGUF at 64", "GGUF at 256", "GPTQ", "compressed-tensors"]
    lines = [head, ["---", *["--:"] * (1 + len(GROUPS) + len(samples)), *["---"] * 4]]
    lines += [_row(name, format, samples) for name, format in formats.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
