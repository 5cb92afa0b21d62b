"""The linear layers that a start rounds: which they are, and those with one input as one matrix.

Layers that read the same tensor (q, k and v; gate and up) have one Gram matrix between them, and rows know nothing
of each other, so their weights are rounded as one tall matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from razor.errors import RazorError
from razor.models import layers_of
from razor.quant import FakeQuantizer, Float16, Format, Site, sites
from razor.quant.lending import WEIGHTS, slot
from razor.start.holding import check_keeps, hold, parts_of
from razor.start.solve import Part, Solved

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def formats_of(student: PreTrainedModel) -> dict[str, Format]:
    """The bound formats of a student's weights, by name of their site."""
    quantizers = {
        name: site.module._modules.get(slot(WEIGHTS, site.attribute)) for name, site in sites(student).items()
    }
    return {name: own.format for name, own in quantizers.items() if isinstance(own, FakeQuantizer)}


def linears_of(model: PreTrainedModel, formats: Mapping[str, Format]) -> list[dict[str, Site]]:
    """The quantized linear layers of each decoder layer, by name.

    Args:
        model: quantized or not, on any device.
        formats: of its weights, bound or not.

    Raises:
        RazorError: a decoder layer has quantized weights that are not those of a linear layer, two share one, a
            format does not keep the scales it is given, or there is nothing to round.
    """
    found, names = sites(model), {id(module): name for name, module in model.named_modules()}
    layers: list[dict[str, Site]] = []
    weights: dict[int, str] = {}
    for block in layers_of(model):
        inside = f"{names[id(block)]}."
        own = {
            name: site
            for name, site in found.items()
            if name.startswith(inside) and not isinstance(formats.get(name, Float16()), Float16)
        }
        for name, site in own.items():
            other = weights.setdefault(id(site.weight), name)
            if site.kind != "linear" or other != name:
                why = f"shares its weight with '{other}'" if other != name else f"is of kind {site.kind}"
                raise RazorError(
                    f"start=gptq rounds linear layers, each for itself, but '{name}' {why}: start=none."
                )
            check_keeps(formats[name], name)
        layers.append(own)
    if not any(layers):
        raise RazorError(
            "start=gptq finds codes, but no linear layer of a decoder layer is quantized: start=none."
        )
    return layers


def by_group(found: Sequence[Site]) -> list[Together]:
    """Linear layers of one input as matrices, one for each size of groups."""
    groups: dict[Any, list[Site]] = {}
    for site in found:
        groups.setdefault(_parts(site)[0].format.group, []).append(site)
    return [Together(together) for together in groups.values()]


@dataclass(frozen=True)
class Together:
    """Linear layers of one input and one size of groups.

    Attributes:
        sites: of their weights.
    """

    sites: Sequence[Site]

    @property
    def weight(self) -> Tensor:
        """[rows, columns] all their latent weights, fp32."""
        return torch.cat([_matrix(site) for site in self.sites])

    @property
    def plain(self) -> Tensor:
        """[rows, columns] what they are rounded to now."""
        return torch.cat([_quantizer(site).format.quantize(_matrix(site)) for site in self.sites])

    @property
    def parts(self) -> list[Part]:
        """Rows of `weight` by format."""
        parts, start = [], 0
        for site in self.sites:
            parts += [Part(part.format, part.rows + start) for part in _parts(site)]
            start += len(_matrix(site))
        return parts

    @torch.no_grad()
    def hold(self, found: Solved) -> None:
        """Put what was found for `weight` into the latent weights and scales."""
        start = 0
        for site in self.sites:
            matrix, quantizer = _matrix(site), _quantizer(site)
            rows = slice(start, start + len(matrix))
            start += len(matrix)
            own = Solved(*(x[rows] for x in (found.weights, found.values, found.scales, found.shifts)))
            latent = hold(quantizer.format, _parts(site), own, site.name)
            site.weight.copy_(quantizer.view.back(latent, site.weight.shape))


def _quantizer(site: Site) -> FakeQuantizer:
    quantizer = site.module._modules[slot(WEIGHTS, site.attribute)]
    assert isinstance(quantizer, FakeQuantizer)
    return quantizer


def _matrix(site: Site) -> Tensor:
    return _quantizer(site).view.matrix(site.weight.detach()).float()


def _parts(site: Site) -> list[Part]:
    return parts_of(_quantizer(site).format, _matrix(site))
