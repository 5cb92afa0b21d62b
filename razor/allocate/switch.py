"""Weights of a quantized model, put into other formats and back, in place."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from razor.quant import FakeQuantizer, Format, Site
from razor.quant.lending import WEIGHTS, slot


class Switch:
    """The formats of a model's weights, to be changed.

    Args:
        sites: of a quantized model, by name.
    """

    def __init__(self, sites: Mapping[str, Site]) -> None:
        self._sites = sites
        self._quantizers = {
            name: own for name, site in sites.items() if (own := _quantizer(site)) is not None
        }
        self._plain = {name: own.format for name, own in self._quantizers.items()}
        self._now: dict[str, Format] = {}

    def hold(self, formats: Mapping[str, Format]) -> None:
        """Hold these weights in these formats, bound to them here, and all others as they were at first."""
        for name in [name for name in self._now if name not in formats]:
            self._put(name, self._plain[name])
            del self._now[name]
        for name, format in formats.items():
            if self._now.get(name) is not format:
                self._put(name, format)
                self._now[name] = format

    @torch.no_grad()
    def _put(self, name: str, format: Format) -> None:
        quantizer, weight = self._quantizers[name], self._sites[name].weight.detach()
        plain = format is self._plain[name]
        quantizer.format = format if plain else format.bind(quantizer.view.matrix(weight))
        quantizer.to(weight.device)  # which forgets the weight that it remembers, too


def _quantizer(site: Site) -> FakeQuantizer | None:
    found: nn.Module | None = site.module._modules.get(slot(WEIGHTS, site.attribute))
    return found if isinstance(found, FakeQuantizer) else None
