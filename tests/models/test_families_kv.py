"""Keys and values of every family of models: rounded once a layer, the same with and without a cache.

Tiny random models. With SDPA they run in fp64, where the order of a sum does not decide on which side of a boundary
a number lies, so that codes can be compared bit for bit. Eager attention makes NaN of a fully masked row in fp64
(its softmax is fp32, where fp64's least number is -inf), so there it is fp32 and a code may flip.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, DynamicCache

from razor.errors import RazorError
from razor.models import QuantCache, quant_cache, quantize_kv
from razor.models.attention import SUFFIX, attention_layers
from razor.quant import Format, Integer

LAYERS, TOKENS, WINDOW = 3, 14, 6
EFFECT = 0.1  # what rounding to 4 bits does to a logit at least
COMMON = {
    "vocab_size": 67,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
    "smollm2": {
        "model_type": "llama",
        "hidden_size": 72,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "mobilellm": {
        "model_type": "llama",
        "hidden_size": 120,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        "tie_word_embeddings": True,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "attn_logit_softcapping": 2.0,
    },
    "qwen2": {"model_type": "qwen2"},
    "phi": {"model_type": "phi", "partial_rotary_factor": 0.5},
    "phi3": {"model_type": "phi3"},
    "gpt2": {"model_type": "gpt2", "n_inner": 64, "num_key_value_heads": None},
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
}
EAGER_ONLY = {"gemma2"}  # soft-capped scores
CASES = [
    (name, how)
    for name in FAMILIES
    for how in ("sdpa", "eager")
    if not (name in EAGER_ONLY and how == "sdpa")
]


def build(family: str, attention: str = "sdpa", rounding: Format | None = None) -> Any:
    """A model of the family with lively random weights, its keys and values rounded if a format is given."""
    fields = COMMON | FAMILIES[family]
    config = CONFIG_MAPPING[fields.pop("model_type")](**fields)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    if attention == "sdpa":
        model.double()
    if family == "qwen3_moe":
        model.set_experts_implementation("eager")  # the other ones know no fp64
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too should do something
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    if rounding is not None:
        quantize_kv(model, rounding)
    return model


def text(rows: int = 2, tokens: int = TOKENS) -> Tensor:
    return torch.randint(1, 67, (rows, tokens), generator=torch.Generator().manual_seed(5))


@contextmanager
def roundings(format: Format) -> Iterator[list[Tensor]]:
    """What `format` rounds meanwhile."""
    seen: list[Tensor] = []
    handle = format.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[Any, Any, Format]:
    """(model with rounded keys and values, the same without, format)."""
    family, attention = request.param
    rounding = Integer(4, 8)
    return build(family, attention, rounding), build(family, attention), rounding


def assert_same(model: Any, a: Tensor, b: Tensor) -> None:
    """Equal but for the fp32 inside of rotary embeddings and norms; in fp32 but for a flipped code, too."""
    torch.testing.assert_close(a, b, rtol=0, atol=1e-4 if model.dtype == torch.float64 else EFFECT / 5)


def step_by_step(model: Any, tokens: Tensor, cache: Any) -> Tensor:
    steps = [
        model(tokens[:, t : t + 1], past_key_values=cache, use_cache=True).logits
        for t in range(tokens.shape[1])
    ]
    return torch.cat(steps, dim=1)


@torch.no_grad()
def test_keys_and_values_are_rounded_once_a_layer_and_it_shows(case: Any) -> None:
    model, plain, rounding = case
    tokens = text()
    with roundings(rounding) as seen:
        logits = model(tokens, use_cache=False).logits
    config = model.config
    heads = config.num_key_value_heads or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert [states.shape for states in seen] == [(2, heads, TOKENS, width)] * (2 * LAYERS)
    assert (logits - plain(tokens, use_cache=False).logits).abs().max() > EFFECT
    assert len(attention_layers(model)) == LAYERS


@torch.no_grad()
def test_the_models_own_attention_runs_below_the_rounding(case: Any) -> None:
    """With a format that changes nothing, nothing changes: masks, windows, soft-capping and all."""
    model, plain, _ = case
    name = plain.config._attn_implementation
    assert model.config._attn_implementation == name + SUFFIX
    unrounded = copy.deepcopy(model)
    for layer in attention_layers(unrounded).values():
        layer.kv_format = torch.nn.Identity()
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[0, :4], mask[1, 11:] = 0, 0
    for padding in (None, mask):
        outputs = [m(text(), attention_mask=padding, use_cache=False).logits for m in (unrounded, plain)]
        assert torch.equal(*outputs)


@torch.no_grad()
def test_keys_are_rounded_after_the_rotary_embedding(case: Any) -> None:
    """One token over and over: its keys of the first layer turn with the position, its values do not."""
    model, _, rounding = case
    if model.config.model_type == "gpt2":
        pytest.skip("positions are embedded before the first layer")
    with roundings(rounding) as seen:
        model(torch.full((1, TOKENS), 7), use_cache=False)
    keys, values = seen[:2]
    torch.testing.assert_close(values[:, :, 1:], values[:, :, :1].expand_as(values[:, :, 1:]))
    assert (keys[:, :, 1:] - keys[:, :, :1]).abs().amax((0, 1, 3)).min() > 1e-3
    torch.testing.assert_close(
        keys.norm(dim=-1)[:, :, 1:], keys.norm(dim=-1)[:, :, :1].expand(-1, -1, TOKENS - 1)
    )


@torch.no_grad()
def test_a_later_token_changes_no_earlier_logit(case: Any) -> None:
    model, _, _ = case
    tokens, changed = text(), text()
    changed[:, 9:] = changed[:, 9:] % 66 + 1
    before, after = (model(t, use_cache=False).logits for t in (tokens, changed))
    # experts see the tokens that are sent to them in one batch: another one may change the order of a sum
    torch.testing.assert_close(before[:, :9], after[:, :9], rtol=0, atol=1e-5)
    assert not torch.allclose(before[:, 9:], after[:, 9:])


@torch.no_grad()
def test_left_padding_gives_the_logits_of_the_bare_text(case: Any) -> None:
    model, plain, _ = case
    tokens, mask = text(), torch.ones(2, TOKENS, dtype=torch.long)
    mask[0, :4] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    padded = model(tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits[0, 4:]
    bare = model(tokens[:1, 4:], use_cache=False).logits[0]
    assert_same(model, padded, bare)
    assert (bare - plain(tokens[:1, 4:], use_cache=False).logits[0]).abs().max() > EFFECT


@torch.no_grad()
@pytest.mark.parametrize("kind", ["stored", "plain"])
def test_token_by_token_equals_one_pass(case: Any, kind: str) -> None:
    model, _, rounding = case
    tokens = text()
    with roundings(rounding) as seen:
        whole = model(tokens, use_cache=False).logits
    cache = quant_cache(model) if kind == "stored" else DynamicCache(config=model.config)
    with roundings(rounding) as again:
        steps = step_by_step(model, tokens, cache)
    assert_same(model, steps, whole)
    assert len(again) == (
        0 if kind == "stored" else 2 * LAYERS * TOKENS
    )  # once: by the cache, or by attention
    if kind == "stored" and model.dtype == torch.float64:
        assert_same_codes(cache, seen, rounding)


def assert_same_codes(cache: QuantCache, seen: list[Tensor], rounding: Format) -> None:
    """The cache holds, bit for bit, the codes of what was rounded in one pass."""
    for layer, rounded in zip(cache.layers, zip(seen[::2], seen[1::2], strict=True), strict=True):
        for states, whole in zip(layer.states, rounded, strict=True):
            held = whole[:, :, -len(states) :]
            packed = rounding.pack(rounding.encode(held.reshape(-1, held.shape[-1])))
            for name, buffer in states._buffers.items():
                stored = buffer[:, :, states._first : states._last].flatten(0, 2)
                assert torch.equal(stored, packed[name])


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True], ids=["bare", "padded"])
def test_generation_stores_codes_and_says_the_same(case: Any, padded: bool) -> None:
    model, plain, rounding = case
    tokens, new = text(tokens=5), 8  # past the window of a sliding layer
    mask = torch.ones_like(tokens)
    if padded:
        mask[0, :2] = 0
    options = {
        "attention_mask": mask,
        "max_new_tokens": new,
        "do_sample": False,
        "return_dict_in_generate": True,
    }
    with roundings(rounding) as seen:
        out = model.generate(tokens, **options)
        assert not seen and isinstance(out.past_key_values, QuantCache)
        cache = DynamicCache(config=model.config)
        fake = model.generate(tokens, past_key_values=cache, **options)
    assert len(seen) == 2 * LAYERS * new and seen[0].shape[2] == 5  # prefill is rounded like the rest
    assert out.sequences.shape == (2, 5 + new) and torch.equal(out.sequences, fake.sequences)
    assert isinstance(plain.generate(tokens, **options).past_key_values, DynamicCache)


@torch.no_grad()
def test_a_window_forgets_what_it_has_left_behind() -> None:
    model = build("gemma3", rounding=Integer(8, "row"))
    cache = quant_cache(model)
    model(text(), past_key_values=cache, use_cache=True)
    assert [len(layer.states[0]) for layer in cache.layers] == [WINDOW - 1, TOKENS, WINDOW - 1]
    assert cache.is_sliding == [True, False, True]


@pytest.mark.parametrize("family", ["phi", "gpt2"])
def test_no_names_of_one_family_are_needed(family: str) -> None:
    """GPT-2 has no groups of heads; a layer may know its head dimension by its config only."""
    model = build(family)
    layers = attention_layers(model)
    for layer in layers.values():
        del layer.head_dim
        assert hasattr(layer, "num_key_value_groups") == (family == "phi")
    assert len(layers) == LAYERS
    with pytest.raises(RazorError, match="Group 16 does not divide the 8 inputs"):
        quantize_kv(model, Integer(8, 16))
    quantize_kv(model, Integer(8, 8))
