"""A cache of codes: as small as promised, cheap to append to, and the same numbers as rounding in attention."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    Gemma3TextConfig,
    LlamaConfig,
    Qwen3NextConfig,
    Zamba2Config,
)
from transformers.cache_utils import LinearAttentionLayer

from razor.errors import RazorError
from razor.models import QuantCache
from razor.models.packed_states import PackedStates
from razor.quant import Affine, Float16, Format, Integer, Ternary

WINDOW = 6
SIZES = {
    "vocab_size": 259,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "eos_token_id": None,
    "bos_token_id": None,
}
LLAMA = LlamaConfig(**SIZES)
GEMMA = Gemma3TextConfig(
    **SIZES,
    head_dim=16,
    query_pre_attn_scalar=16,
    sliding_window=WINDOW,
    layer_types=["sliding_attention", "full_attention"],
)


def states(
    tokens: int, heads: int = 3, width: int = 64, rows: int = 2, seed: int = 0, dtype: Any = None
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, heads, tokens, width, generator=generator).to(dtype or torch.float32)


def filled(cache: Any, pieces: tuple[int, ...], **options: Any) -> list[tuple[Tensor, Tensor]]:
    """Give every layer keys and values in pieces of so many tokens; what the last update returned."""
    out = []
    for layer in range(len(cache.layers)):
        keys, values = (states(sum(pieces), seed=2 * layer + i, **options) for i in range(2))
        for k, v in zip(keys.split(pieces, dim=2), values.split(pieces, dim=2), strict=True):
            last = cache.update(k, v, layer)
        out.append(last)
    return out


def tensors_in(thing: Any) -> list[Tensor]:
    """Every tensor that an object of ours holds, wherever it is."""
    if isinstance(thing, Tensor):
        return [thing]
    if isinstance(thing, dict):
        return [t for item in thing.values() for t in tensors_in(item)]
    if isinstance(thing, (list, tuple)):
        return [t for item in thing for t in tensors_in(item)]
    return tensors_in(vars(thing)) if hasattr(thing, "__dict__") and not isinstance(thing, type) else []


# memory


@pytest.mark.parametrize("group", [32, "row"])
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_memory_is_that_of_codes_and_scales(bits: int, width: int, group: int | str) -> None:
    cache, plain = QuantCache(LLAMA, Integer(bits, group)), DynamicCache(config=LLAMA)
    for each in (cache, plain):
        filled(each, (37,), width=width, dtype=torch.bfloat16)
    scales = 1 if group == "row" else width // group
    rows = 2 * 2 * (2 * 3 * 37)  # layers, keys and values, (batch, heads, tokens)
    assert cache.nbytes == rows * (width * bits // 8 + 2 * scales)
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_in(cache.layers)}
    assert (
        sum(held.values()) == cache.reserved == cache.nbytes
    )  # nothing decoded is kept, no room after prefill
    full = sum(t.nbytes for layer in plain.layers for t in (layer.keys, layer.values))
    assert full == rows * width * 2
    assert full / cache.nbytes == 16 / (bits + 16 * scales / width)


def test_a_window_takes_the_memory_of_a_window() -> None:
    cache = QuantCache(GEMMA, Integer(8, "row"))
    filled(cache, (200,))
    window, whole = (layer.states[0] for layer in cache.layers)
    assert len(window) == WINDOW - 1 and len(whole) == 200
    assert window.nbytes == 2 * 3 * 5 * (64 + 2) and window.reserved < whole.reserved / 4


def test_appending_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are encoded once, and moved now and then."""
    encoded, moves = [], []
    format = Integer(4, "row")
    encode, move = format.encode, PackedStates._move
    monkeypatch.setattr(format, "encode", lambda x: encoded.append(len(x)) or encode(x))
    monkeypatch.setattr(
        PackedStates, "_move", lambda self, old, size: moves.append(len(self)) or move(self, old, size)
    )
    packed = PackedStates(format)
    new = 1000
    for _ in range(new):
        packed.append(states(1))
        assert packed.reserved <= packed.nbytes * 9 / 8 + 2 * 3 * 33 * (32 + 2)
    assert encoded == [2 * 3] * new
    assert len(moves) < 25 and sum(moves) < 9 * new  # bytes copied per byte kept: about eight


# numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "format",
    [Integer(8, 32), Integer(4, "row"), Integer(2, 16), Affine(3, 32), Ternary(32), Float16("float16")],
    ids=lambda f: f"{type(f).__name__}-{f.label}",
)
def test_states_come_out_quantized_from_the_first_token_on(format: Format, dtype: torch.dtype) -> None:
    for pieces in ((11,), (5, 1, 5), (1,) * 11):
        cache = QuantCache(LLAMA, format)
        for layer, out in enumerate(filled(cache, pieces, dtype=dtype)):
            for i, got in enumerate(out):
                expected = format.quantize(states(11, seed=2 * layer + i, dtype=dtype))
                assert got.dtype == dtype and torch.equal(got, expected)
        assert cache.get_seq_length() == 11


class Rounded(DynamicCache):
    """Transformers' own cache, given states that are rounded already: what ours has to equal."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *rest: Any, **more: Any
    ) -> Any:
        rounding = Integer(4, 16)
        return super().update(rounding.quantize(key_states), rounding.quantize(value_states), layer_idx)


CHANGES = {
    "reorder": lambda cache: cache.reorder_cache(torch.tensor([1, 1, 0])),
    "select": lambda cache: cache.batch_select_indices(torch.tensor([1])),
    "mask": lambda cache: cache.batch_select_indices(torch.tensor([False, True])),
    "repeat": lambda cache: cache.batch_repeat_interleave(3),
    "crop": lambda cache: cache.crop(-2),
    "crop_all": lambda cache: cache.crop(-4),
    "crop_none": lambda cache: cache.crop(0),
    "reset": lambda cache: cache.reset(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("config", [LLAMA, GEMMA], ids=["full", "sliding"])
def test_changes_are_those_of_transformers_cache(config: Any, change: str) -> None:
    ours, theirs = QuantCache(config, Integer(4, 16)), Rounded(config=config)
    outcomes = []
    for cache in (ours, theirs):
        filled(cache, (3, 1))
        CHANGES[change](cache)
        rows = 2 if not cache.get_seq_length() else {"reorder": 3, "repeat": 6}.get(change, 2)
        rows = 1 if change in ("select", "mask") else rows
        lengths = [(layer.get_seq_length(), layer.get_mask_sizes(2)) for layer in cache.layers]
        outcomes.append((lengths, filled(cache, (2, 5, 1), rows=rows)))
    assert outcomes[0][0] == outcomes[1][0]
    for mine, others in zip(outcomes[0][1], outcomes[1][1], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, others, strict=True))


@pytest.mark.parametrize("steps", [(4, -1), (9, -3), (4, 3, -2, 4, 0, 2, -1), (20, -1, 1, 1, -2)])
def test_guessed_tokens_are_taken_back_from_a_window(steps: tuple[int, ...]) -> None:
    """Assisted decoding: crop, while the past is recorded, even past the edge of the window."""
    ours, theirs = QuantCache(GEMMA, Integer(4, 16)), Rounded(config=GEMMA)
    for cache in (ours, theirs):
        cache.activate_past_recording()
    for seed, step in enumerate(steps):
        if step <= 0:
            ours.crop(step), theirs.crop(step)
        else:
            new = [states(step, seed=100 * seed + i) for i in range(2)]
            for layer in range(2):
                mine, others = (cache.update(*new, layer) for cache in (ours, theirs))
                assert all(torch.equal(a, b) for a, b in zip(mine, others, strict=True))
        assert ours.get_seq_length() == theirs.get_seq_length()
        sizes = [[layer.get_mask_sizes(1) for layer in cache.layers] for cache in (ours, theirs)]
        assert sizes[0] == sizes[1]
    assert ours.is_croppable and theirs.is_croppable


def test_what_a_window_has_left_behind_cannot_be_cropped_to() -> None:
    cache = QuantCache(GEMMA, Integer(4, 16))
    filled(cache, (9,))
    with pytest.raises(RuntimeError, match="activate_past_recording"):
        cache.crop(-1)
    for config in (LLAMA, GEMMA):
        with pytest.raises(ValueError, match="negative"):
            QuantCache(config, Integer(4, 16)).crop(3)


def test_a_copy_is_a_cache_of_its_own() -> None:
    cache = QuantCache(GEMMA, Integer(4, 16))
    filled(cache, (4,))
    twin = copy.deepcopy(cache)
    filled(twin, (3,))
    assert (cache.get_seq_length(), twin.get_seq_length()) == (4, 7)
    again = filled(cache, (3,))
    mine, others = filled(twin, (1,))[1], filled(cache, (1,))[1]
    assert all(torch.equal(a, b) for a, b in zip(mine, others, strict=True)) and len(again) == 2


def test_layers_without_keys_keep_what_they_had() -> None:
    layers = ["linear_attention", "full_attention"]
    cache = QuantCache(Qwen3NextConfig(num_hidden_layers=2, layer_types=layers), Integer(8, 8))
    assert type(cache.layers[0]) is LinearAttentionLayer and type(cache.layers[1]) is not LinearAttentionLayer
    assert cache.is_linear == [True, False] and cache.nbytes == 0
    with pytest.raises(RazorError, match="caches as LinearAttentionAndFullAttentionLayer"):
        QuantCache(Zamba2Config(), Integer(8, 8))


@pytest.mark.parametrize(
    ("group", "problem"), [("tensor", "has scales that tokens would share"), (48, "does not divide")]
)
def test_a_format_that_cannot_hold_a_token_is_said(group: int | str, problem: str) -> None:
    with pytest.raises(RazorError, match=f"{problem}.*QuantCache"):
        filled(QuantCache(LLAMA, Integer(8, group)), (3,))
