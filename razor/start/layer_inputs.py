"""What the linear layers of a decoder are given, one decoder layer after the other.

Each decoder layer is to be looked at when all before it are finished, several times over, and it must not cost a
pass through the whole model each time. So what went into the present layer is kept for every batch: a pass begins
there (`razor.models.suffix`) and ends as soon as it has shown what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from razor.distill import Batch
from razor.models import layers_of
from razor.models.packed_attention import packed_attention
from razor.models.record import decoder_of
from razor.models.suffix import starting_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SLICE = 384
"""Columns of a Gram matrix that are made at once: what lies below the diagonal is left out."""

Seen = Callable[[str, Any, Tensor], None]
"""Is told the name of a linear layer, the layer and its input, before that is quantized."""


class _Enough(Exception):
    """Ends a pass."""


class LayerInputs:
    """The decoder layers of a model, one at a time, over the same batches.

    Args:
        model: in evaluation mode; its weights may be changed between passes, but for those of finished layers.
        batches: of packed documents, on the device of the model.

    Attributes:
        index: of the present layer.
    """

    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch]) -> None:
        self.decoder, self.blocks, self.batches = decoder_of(model), layers_of(model), batches
        self.modules = dict(model.named_modules())
        self.index = 0
        self._states: list[Tensor | None] = [None] * len(batches)
        self._tuples = False

    def calls(self, linears: Mapping[str, nn.Module]) -> list[list[str]]:
        """Names of those linear layers of the present layer that are called, in order; same input, same list."""
        found: list[tuple[Tensor, list[str]]] = []

        def note(name: str, module: nn.Module, x: Tensor) -> None:
            same = next((names for known, names in found if known is x), None)
            if same is None:
                found.append((x, [name]))
            elif name not in same:
                same.append(name)

        self._pass(0, linears, note)
        return [names for _, names in found]

    def products(self, name: str, wanted: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor | None]:
        """2 X X^T [columns, columns] in fp32 over the quantized inputs X of a linear layer, padding left out.

        Args:
            name: of the layer, which is quantized.
            wanted: inputs V that it ought to have, batch by batch, as `kept` gives them.

        Returns:
            that, and 2 (V - X) X^T, if there are such inputs.
        """
        gram: Tensor | None = None
        drift: Tensor | None = None

        def add(_: str, module: Any, x: Tensor) -> None:
            nonlocal gram, drift
            x = self._text(module.quantized_input(x), number).float()
            if gram is None:
                gram = x.new_zeros(x.shape[1], x.shape[1])
                drift = None if wanted is None else torch.zeros_like(gram)
            for start in range(0, x.shape[1], SLICE):
                own = x[:, start : start + SLICE]
                gram[start : start + SLICE, start:].addmm_(own.T, x[:, start:], alpha=2.0)
            if drift is not None and wanted is not None:
                drift.addmm_((wanted[number].float() - x).T, x, alpha=2.0)
            raise _Enough

        for number in range(len(self.batches)):
            self._pass(number, {name: self.modules[name]}, add)
        assert gram is not None
        return gram.triu().add_(gram.triu(1).T), drift

    def kept(self, names: Sequence[str]) -> dict[str, list[Tensor]]:
        """Inputs [tokens, columns] of some linear layers, padding left out, batch by batch; then as `advance`."""
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        linears = {name: self.modules[name] for name in names}
        for number in range(len(self.batches)):

            def keep(name: str, _: Any, x: Tensor, number: int = number) -> None:
                found[name].append(self._text(x, number))

            self._states[number] = self._pass(number, linears, keep)
        self.index += 1
        return found

    def _text(self, x: Tensor, number: int) -> Tensor:
        """Inputs [..., columns] of batch `number` as [tokens, columns]."""
        documents = self.batches[number].documents
        return x[documents >= 0] if x.shape[:-1] == documents.shape else x.flatten(0, -2)

    def advance(self) -> None:
        """The present layer is finished: go on to the next one."""
        for number in range(len(self.batches)):
            self._states[number] = self._pass(number, {}, None)
        self.index += 1

    def _pass(self, number: int, linears: Mapping[str, nn.Module], seen: Seen | None) -> Tensor | None:
        """The present layer's output on a batch; None if the pass ended before."""
        batch, out = self.batches[number], []

        def leave(_: nn.Module, __: Any, output: Any) -> None:
            self._tuples = isinstance(output, tuple)
            out.append(output[0] if self._tuples else output)
            raise _Enough

        block = self.blocks[self.index]
        handles = [
            block.register_forward_hook(leave),
            *(
                module.register_forward_pre_hook(_telling(name, seen))
                for name, module in linears.items()
                if seen
            ),
        ]
        try:
            with (
                torch.no_grad(),
                packed_attention(self.decoder, self.blocks[self.index : self.index + 1], batch),
                starting_at(self.blocks, self.index, self._states[number], self._tuples),
            ):
                self.decoder(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
        except _Enough:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return out[0] if out else None


def _telling(name: str, seen: Seen) -> Any:
    return lambda module, given: seen(name, module, given[0])
