"""Generation keeps codes and says what it would say on a plain cache, where attention rounds at every step."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import StaticCache
from transformers.models.gemma3.modeling_gemma3 import Gemma3ForCausalLM

from razor.errors import RazorError
from razor.models import QuantCache, byte_tokenizer, quant_cache, quantize_kv
from razor.models.attention import quantized_kv_attention
from razor.quant import Integer
from razor.serve.chat import Chat
from razor.serve.engine import Settings
from razor.serve.transformers_engine import TransformersEngine

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


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """Quantized fp32 models by name, and a Llama that is not."""
    made: dict[str, Any] = {}
    for name, kind, config in (("llama", LlamaForCausalLM, LLAMA), ("gemma", Gemma3ForCausalLM, GEMMA)):
        torch.manual_seed(0)
        made[name] = kind(copy.deepcopy(config)).eval()
    made["bare"] = copy.deepcopy(made["llama"])
    quantize_kv(made["llama"], Integer(4, 8))
    quantize_kv(made["gemma"], Integer(4, "row"))
    return made


@pytest.fixture(params=["llama", "gemma"])
def model(request: pytest.FixtureRequest, models: dict[str, Any]) -> Any:
    return models[request.param]


@pytest.fixture
def rounded(model: Any) -> Iterator[list[Any]]:
    """Shapes that attention rounds meanwhile."""
    seen: list[Any] = []
    format = model.model.layers[0].self_attn.kv_format
    handle = format.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    yield seen
    handle.remove()


def text(tokens: int = 9, rows: int = 2) -> Tensor:
    return torch.randint(1, 259, (rows, tokens), generator=torch.Generator().manual_seed(1))


def generate(model: Any, tokens: Tensor, cache: Any = None, **options: Any) -> Any:
    options = {"max_new_tokens": 12, "do_sample": False, "return_dict_in_generate": True} | options
    given = {} if cache is None else {"past_key_values": cache}
    return model.generate(tokens, attention_mask=torch.ones_like(tokens), **given, **options)


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3, "num_return_sequences": 2}, {"prompt_lookup_num_tokens": 3}, {"do_sample": True}],
)
def test_generation_stores_codes_by_default(model: Any, rounded: list[Any], options: dict[str, Any]) -> None:
    tokens = text(rows=1 if "prompt_lookup_num_tokens" in options else 2).repeat(1, 2)
    torch.manual_seed(3)
    stored = generate(model, tokens, **options)
    assert type(stored.past_key_values) is QuantCache and not rounded
    torch.manual_seed(3)
    fake = generate(model, tokens, DynamicCache(config=model.config), **options)
    assert type(fake.past_key_values) is DynamicCache and rounded
    assert torch.equal(stored.sequences, fake.sequences)


@torch.no_grad()
def test_an_assistant_can_take_back_its_guesses(models: dict[str, Any]) -> None:
    model, tokens = models["gemma"], text(rows=1)
    assistant, generator = copy.deepcopy(model), torch.Generator().manual_seed(2)
    for parameter in assistant.parameters():  # so that some of its guesses are wrong
        parameter.mul_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
    assistant.generation_config.update(num_assistant_tokens=3, assistant_confidence_threshold=0)
    guessed = generate(model, tokens, assistant_model=assistant)
    assert torch.equal(guessed.sequences, generate(model, tokens).sequences)


@torch.no_grad()
def test_other_caches_may_be_asked_for(models: dict[str, Any]) -> None:
    model, tokens = models["llama"], text()
    expected = generate(model, tokens).sequences
    static = generate(model, tokens, cache_implementation="static", disable_compile=True)
    assert isinstance(static.past_key_values, StaticCache) and torch.equal(static.sequences, expected)
    none = generate(model, tokens, use_cache=False)
    assert none.past_key_values is None and torch.equal(none.sequences, expected)
    given = quant_cache(model)
    assert generate(model, tokens, given).past_key_values is given and given.nbytes > 0


@torch.no_grad()
@pytest.mark.parametrize("reordered", [False, True])
def test_a_conversation_goes_on_with_its_cache(model: Any, reordered: bool) -> None:
    """Also when an earlier turn ran in inference mode, whose tensors may not be written to outside of it."""
    cache = quant_cache(model)
    with torch.inference_mode():
        first = generate(model, text(), cache, max_new_tokens=5).sequences.clone()
        if reordered:
            cache.batch_select_indices(torch.arange(2))
    longer = torch.cat([first.clone(), text(4)], dim=1)
    assert torch.equal(generate(model, longer, cache).sequences, generate(model, longer).sequences)


@torch.no_grad()
def test_a_copied_model_makes_caches_of_its_own_format(models: dict[str, Any]) -> None:
    twin = copy.deepcopy(models["llama"])
    for layer in twin.model.layers:
        layer.self_attn.kv_format = Integer(8, 8)
    cache = generate(twin, text()).past_key_values
    assert cache.format.width == 8 and quant_cache(models["llama"]).format.width == 4


@torch.no_grad()
def test_a_cache_quantizes_a_model_that_does_not(models: dict[str, Any]) -> None:
    bare, tokens = models["bare"], text()
    with pytest.raises(RazorError, match=r"has no KV format.*quant\.kv_cache="):
        quant_cache(bare)
    assert type(generate(bare, tokens).past_key_values) is DynamicCache
    stored = bare(tokens, past_key_values=QuantCache(bare.config, Integer(4, 8)), use_cache=True).logits
    torch.testing.assert_close(stored, models["llama"](tokens, use_cache=False).logits, rtol=1e-3, atol=1e-3)
    assert (stored - bare(tokens).logits).abs().max() > 0.1


def test_chat_stores_codes(models: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    model, rounded = models["llama"], []
    format = model.model.layers[0].self_attn.kv_format
    handle = format.register_forward_hook(lambda *_: rounded.append(1))
    Chat(TransformersEngine(model, byte_tokenizer(), "tiny"), Settings(max_new_tokens=4)).answer("Hello")
    handle.remove()
    assert not rounded and capsys.readouterr().out


def test_no_gradient_is_lost_silently(model: Any) -> None:
    with pytest.raises(RazorError, match="no gradient flows"):
        model(text(), past_key_values=quant_cache(model), use_cache=True)


def test_keys_that_are_not_those_of_the_cache_are_an_error() -> None:
    """Or they would be stored in one form and used in another."""
    layer = SimpleNamespace(kv_format=Integer(8, 8), kv_stored=True)
    keys = torch.randn(2, 3, 3, 8)
    with pytest.raises(RazorError, match="after they were cached"):
        quantized_kv_attention(layer, keys, keys, keys, None)
