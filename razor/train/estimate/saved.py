"""What a student keeps between its forward and its backward pass, asked of autograd itself.

Nobody has to know by heart which results of which layer a backward pass needs. The student is built on the meta
device, where tensors have shapes and no numbers, runs once as it would in training, and a hook notes every
tensor that autograd saves (`torch.autograd.graph.saved_tensors_hooks`); a tensor saved twice counts once, and
parameters and quantized weights count elsewhere. That is exact for any model that Razor trains. For a llama it
says, per token and layer, with e the bytes of the compute dtype:

    norms        2 x (4 width + e width)     the input in fp32, the normed result in e
    attention    e (2 heads + 2 KV heads) head_dim + 4 heads     queries, keys, values, output, log-sums
    linears      e (2 width + heads head_dim + inner)     quantized inputs; q, k, v share one, gate and up too
    MLP          3 e inner                   gate, its activation, up

Attention is stood in for, because what its kernel keeps depends on the device: on a CPU documents attend one by
one (`razor.models.document_attention`); elsewhere, and under gradient checkpointing, SDPA keeps keys and values
repeated for all heads, and a mask of length x length numbers for each row and layer.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from razor.models import layers_of
from razor.models.image_record import pixels_for
from razor.models.intercepted import Attention, intercepted, reachable_attention
from razor.models.student import quantize_in_place
from razor.quant import FakeQuantizer, Plan
from razor.quant.float16 import Float16
from razor.quant.layers import InputQuantizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Saved:
    """Bytes between forward and backward of one micro-batch.

    Attributes:
        kinds: by the class of the module that saved them.
        layer: of the layer that keeps most, without gradient checkpointing.
        state: one recorded hidden state, beyond what is kept anyway.
        exact: False if the model could not run without numbers, and this is a rule of thumb.
    """

    kinds: dict[str, int]
    layer: int
    state: int
    exact: bool = True

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.kinds.values())


class _StandIn(Float16):
    """16-bit rounding in place of another format: its result is a tensor of its own, as the other's is."""

    def fake(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return self.quantize(x, dtype)


def meta_student(skeleton: PreTrainedModel, plan: Plan, dtype: torch.dtype) -> PreTrainedModel:
    """A skeleton as the student it would become, still on the meta device; `skeleton` is changed.

    Formats are bound, so their learned scales are parameters; then 16-bit rounding takes their place, because some
    look at numbers and all take their time. What is quantized takes as many bytes either way.
    """
    quantize_in_place(skeleton, plan, dtype)
    for module in skeleton.modules():
        if isinstance(module, FakeQuantizer):
            module.learned_scales = nn.ParameterList(module.format.learned())
            module.format = _StandIn()
        elif isinstance(module, InputQuantizer):
            module.format = _StandIn()
        elif hasattr(module, "kv_format"):
            module.kv_format = _StandIn()
    return skeleton.requires_grad_(True).train()


def saved(
    student: PreTrainedModel,
    rows: int,
    length: int,
    device: str,
    checkpointing: bool,
    image: tuple[int, ...] = (),
) -> Saved:
    """What one micro-batch leaves for the backward pass.

    Args:
        student: on the meta device (see `meta_student`).
        rows: of the micro-batch.
        length: of a row.
        device: where it would run, "cpu" or "cuda".
        checkpointing: gradient checkpointing.
        image: (channels, height, width), if rows are images.
    """
    pieces = device == "cpu" and not checkpointing
    try:
        plain = _pass(student, rows, length, pieces, image)
        if not checkpointing:
            return plain
        with _checkpointed(student):
            kept = _pass(student, rows, length, pieces, image)
        return Saved(kept.kinds, plain.layer, kept.state)
    except (NotImplementedError, RuntimeError, ValueError, TypeError):  # a model that looks at its numbers
        if image:
            raise  # whatever a rule of thumb said of convolutions would be wrong
        return _rule_of_thumb(student, rows * length, checkpointing)


@contextmanager
def _checkpointed(student: PreTrainedModel) -> Iterator[None]:
    with warnings.catch_warnings():  # that these methods will have other names
        warnings.simplefilter("ignore", FutureWarning)
        student.gradient_checkpointing_enable({"use_reentrant": False})
        try:
            yield
        finally:
            student.gradient_checkpointing_disable()


def _rule_of_thumb(student: PreTrainedModel, tokens: int, checkpointing: bool) -> Saved:
    """A layer keeps about ten tensors of the hidden and six of the inner width, half of them in fp32."""
    config = student.config.get_text_config()
    width, layers = config.hidden_size, len(layers_of(student))
    inner = getattr(config, "intermediate_size", None) or 4 * width
    layer, state = tokens * (10 * width + 6 * inner) * 3, 2 * tokens * width
    return Saved(
        {"layers (rule of thumb)": layers * (state if checkpointing else layer)}, layer, state, False
    )


def _pass(student: PreTrainedModel, rows: int, length: int, pieces: bool, image: tuple[int, ...]) -> Saved:
    blocks, watch = layers_of(student), _Watch(student)
    if image:
        pixels = pixels_for(student, torch.zeros(rows, *image, device="meta"))
        with watch.open(blocks):
            student(pixel_values=pixels)
        return watch.found()
    tokens = torch.zeros(rows, length, dtype=torch.long, device="meta")
    mask = torch.ones(rows, 1, length, length, dtype=torch.bool, device="meta")
    with ExitStack() as stack:
        for module in reachable_attention(blocks).values():
            stack.enter_context(intercepted(module, _attention(pieces)))
        stack.enter_context(watch.open(blocks))
        student.get_decoder()(input_ids=tokens, position_ids=tokens, attention_mask=mask, use_cache=False)
    return watch.found()


class _Watch:
    """Notes every storage that autograd saves, and which module was running."""

    def __init__(self, student: nn.Module) -> None:
        self.student = student
        self.seen: dict[int, tuple[Tensor, str, int]] = {}
        self.states: list[Tensor] = []
        self._names: list[str] = []
        self._block = -1

    @contextmanager
    def open(self, blocks: nn.ModuleList) -> Iterator[None]:
        handles = []
        for module in self.student.modules():
            handles.append(module.register_forward_pre_hook(self._enter(type(module).__name__)))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        for number, block in enumerate(blocks):
            handles.append(block.register_forward_pre_hook(self._at(number)))
            handles.append(block.register_forward_hook(self._state))
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._save, lambda kept: kept):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Any:
        return lambda *_: self._names.append(name)

    def _leave(self, *_: Any) -> None:
        self._names.pop()

    def _at(self, number: int) -> Any:
        def hook(*_: Any) -> None:
            self._block = number

        return hook

    def _state(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.states.append(output[0] if isinstance(output, tuple) else output)
        self._block = -1

    def _save(self, tensor: Tensor) -> Tensor:
        name = self._names[-1] if self._names else type(self.student).__name__
        self.seen.setdefault(_key(tensor), (tensor, name, self._block))
        return tensor

    def found(self) -> Saved:
        weights = [*self.student.parameters(), *self.student.buffers()]
        weights += [
            part._remembered[2]
            for part in self.student.modules()
            if isinstance(part, FakeQuantizer) and part._remembered is not None
        ]
        elsewhere = {_key(tensor) for tensor in weights}
        kinds: Counter[str] = Counter()
        layers: Counter[int] = Counter()
        for key, (tensor, name, block) in self.seen.items():
            if key not in elsewhere:
                size = tensor.untyped_storage().nbytes()
                kinds[name] += size
                layers[block] += size if block >= 0 else 0
        beside = [state.nbytes for state in self.states[:-1] if _key(state) not in self.seen]
        return Saved(dict(kinds), max(layers.values(), default=0), max(beside, default=0))


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _attention(pieces: bool) -> Any:
    """Stands in for attention: makes and keeps tensors of the right shapes."""

    def wrap(own: Attention) -> Attention:
        def attention(
            module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, **_: Any
        ) -> Any:
            bias = None
            if not pieces:
                repeats = query.shape[1] // key.shape[1]
                if repeats > 1:
                    key, value = (x.repeat_interleave(repeats, 1) for x in (key, value))
                bias = None if mask is None else mask.to(query.dtype)
            return _Kept.apply(query, key, value, bias), None

        return attention

    return wrap


class _Kept(torch.autograd.Function):
    """Keeps what the backward pass of attention needs: inputs, output, log-sums, and an additive mask."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        rows, heads, tokens, _ = query.shape
        out = query.new_empty(rows, tokens, heads, value.shape[-1])
        sums = torch.empty(rows, heads, tokens, dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, out, sums, bias)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError("There are no numbers here to differentiate.")
