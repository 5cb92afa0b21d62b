"""What llama.cpp calls a model's parts: names of tensors, facts about the architecture, its order of rows.

Each architecture that llama.cpp runs has a name and its own keys; a model is written under them or not at all. What
changes a forward pass without changing a tensor (rotary scaling, windows, soft caps) is either told or refused.

**Order of rows.** Rotary embedding turns pairs of numbers of a head. Transformers pairs number i with i + half, and
so does llama.cpp for Qwen3 and Gemma; for the llama architecture it pairs neighbours, so the rows of q and k change
places when they are written: codes, scales and biases alike.
"""

from __future__ import annotations

import re
from abc import ABC
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from razor.errors import RazorError

Facts = dict[str, int | float | str | bool]

LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


class Architecture(ABC):
    """How one architecture of Transformers becomes one of llama.cpp."""

    name: ClassVar[str]
    """What llama.cpp calls it."""

    layer: ClassVar[Mapping[str, str]] = LAYER
    paired: ClassVar[bool] = False
    """Whether rotary embedding pairs neighbours, so that rows of q and k change places."""

    added: ClassVar[float] = 0.0
    """Added to the weights of norms when they are written."""

    activations: ClassVar[tuple[str, ...]] = ("silu", "swish")

    kinds_of_layers: ClassVar[int] = 2
    """So many first layers hold one of each kind."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def check(self) -> None:
        """Look for what llama.cpp would compute in another way.

        Raises:
            RazorError: names it.
        """
        kind = getattr(self.config, "hidden_act", None) or getattr(self.config, "hidden_activation", None)
        if kind not in self.activations:
            raise self._refused(f"hidden_act={kind}")
        if getattr(self.config, "use_sliding_window", False):
            raise self._refused("use_sliding_window=true")

    def _refused(self, what: str) -> RazorError:
        return RazorError(
            f"llama.cpp's architecture '{self.name}' does not know {what}: export=[packed] or [dense] keeps it."
        )

    def tensor(self, parameter: str) -> str:
        """The name in GGUF of a parameter of Transformers, `<module>.weight` or `.bias`.

        Raises:
            RazorError: it has none.
        """
        module, _, kind = parameter.rpartition(".")
        if module in WHOLE and kind == "weight":
            return f"{WHOLE[module]}.weight"
        found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
        if found and found[2] in self.layer and kind in ("weight", "bias"):
            return f"blk.{found[1]}.{self.layer[found[2]]}.{kind}"
        raise self._refused(f"the tensor '{parameter}'")

    def order(self, parameter: str) -> Tensor | None:
        """Row i of the written tensor is row `order[i]` of ours; None if nothing moves."""
        heads = {
            "self_attn.q_proj": self.config.num_attention_heads,
            "self_attn.k_proj": self.config.num_key_value_heads,
        }
        for module, count in heads.items():
            if self.paired and f".{module}." in f"{parameter}.":
                rows = torch.arange(count * self.head_dim).reshape(count, 2, self.head_dim // 2)
                return rows.transpose(1, 2).reshape(-1)
        return None

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        config = self.config
        return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    def facts(self) -> Facts:
        """Metadata below `<architecture>.`."""
        config = self.config
        return {
            "block_count": config.num_hidden_layers,
            "context_length": config.max_position_embeddings,
            "embedding_length": config.hidden_size,
            "feed_forward_length": config.intermediate_size,
            "attention.head_count": config.num_attention_heads,
            "attention.head_count_kv": config.num_key_value_heads,
            "attention.key_length": self.head_dim,
            "attention.value_length": self.head_dim,
            "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
            "rope.dimension_count": self.head_dim,
            "vocab_size": config.vocab_size,
        } | self.rope_facts()

    def rope(self) -> Mapping[str, Any]:
        """The config's rotary parameters."""
        return dict(self.config.rope_parameters or {})

    def rope_facts(self) -> Facts:
        """Base of the rotary frequencies, and how they are scaled.

        Raises:
            RazorError: a scaling that llama.cpp does not have.
        """
        rope = self.rope()
        kind = rope.get("rope_type", "default")
        facts: Facts = {"rope.freq_base": float(rope.get("rope_theta", 10000.0))}
        if kind == "linear":
            return facts | {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
        if kind == "yarn":
            if rope.get("attention_factor") or rope.get("mscale") or rope.get("truncate") is False:
                raise self._refused("this kind of YaRN (attention_factor, mscale or truncate)")
            length = rope.get("original_max_position_embeddings") or self.config.max_position_embeddings
            return facts | {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": float(rope["factor"]),
                "rope.scaling.original_context_length": int(length),
            }
        if kind not in ("default", "llama3"):
            raise self._refused(f"rotary scaling of type '{kind}' (default, linear, yarn, llama3)")
        return facts

    def added_tensors(self) -> dict[str, Tensor]:
        """Tensors in fp32 that Transformers computes and llama.cpp wants to read."""
        rope = self.rope()
        return (
            {"rope_freqs.weight": _llama3_factors(rope, self.head_dim)}
            if rope.get("rope_type") == "llama3"
            else {}
        )


def _llama3_factors(rope: Mapping[str, Any], head_dim: int) -> Tensor:
    """What divides each rotary frequency (Llama 3.1): `factor` for low ones, 1 for high ones, smoothly between."""
    frequencies = float(rope["rope_theta"]) ** -(torch.arange(0, head_dim, 2).double() / head_dim)
    lengths = 2 * torch.pi / frequencies
    low, high, factor = (float(rope[key]) for key in ("low_freq_factor", "high_freq_factor", "factor"))
    original = float(rope["original_max_position_embeddings"])
    smooth = ((original / lengths - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).float()


class Llama(Architecture):
    """Llama 2 and 3, SmolLM2, MobileLLM."""

    name = "llama"
    paired = True


class Qwen3(Architecture):
    """Qwen3, dense: norms on the heads of q and k."""

    name = "qwen3"
    layer = LAYER | HEAD_NORMS


class Gemma3(Architecture):
    """Gemma 3, text: norms around each part, with 1 + weight; windows in five layers of six."""

    name = "gemma3"
    layer = (
        LAYER
        | HEAD_NORMS
        | {
            "post_attention_layernorm": "post_attention_norm",
            "pre_feedforward_layernorm": "ffn_norm",
            "post_feedforward_layernorm": "post_ffw_norm",
        }
    )
    added = 1.0
    activations = ("gelu_pytorch_tanh",)
    period = kinds_of_layers = 6
    large = 62
    """Layers of the 27B model, whose attention llama.cpp scales in another way."""

    def check(self) -> None:  # noqa: D102 - see Architecture
        super().check()
        config = self.config
        for key in (
            "final_logit_softcapping",
            "attn_logit_softcapping",
            "attention_bias",
            "use_bidirectional_attention",
        ):
            if getattr(config, key, None):
                raise self._refused(f"{key}={getattr(config, key)}")
        large = config.num_hidden_layers == self.large
        width = config.hidden_size // config.num_attention_heads if large else self.head_dim
        if config.query_pre_attn_scalar != width:
            raise self._refused(f"query_pre_attn_scalar={config.query_pre_attn_scalar} (it uses {width})")
        windows = [
            "full_attention" if (i + 1) % self.period == 0 else "sliding_attention"
            for i in range(config.num_hidden_layers)
        ]
        if list(config.layer_types) != windows:
            raise self._refused("layer_types other than five windows and one full layer in turn")

    def rope(self) -> Mapping[str, Any]:  # noqa: D102
        return dict(self.config.rope_parameters["full_attention"])

    def facts(self) -> Facts:  # noqa: D102
        local = self.config.rope_parameters["sliding_attention"]
        if local.get("rope_type", "default") != "default":
            raise self._refused("rotary scaling of the windowed layers")
        return super().facts() | {
            "attention.sliding_window": self.config.sliding_window,
            "rope.freq_base_swa": float(local.get("rope_theta", 10000.0)),
        }


ARCHITECTURES: dict[str, type[Architecture]] = {"llama": Llama, "qwen3": Qwen3, "gemma3_text": Gemma3}
"""By Transformers' `model_type`."""


def architecture(config: Any) -> Architecture:
    """How a model with this config is written.

    Raises:
        RazorError: it cannot be; the text names the architectures that can, or what is in the way.
    """
    kind = str(config.model_type)
    if kind not in ARCHITECTURES:
        raise RazorError(
            f"export=[gguf] writes the architectures {', '.join(ARCHITECTURES)} (by model_type: SmolLM2 and "
            f"MobileLLM are llama), not '{kind}'. export=[packed] or [dense] takes any."
        )
    found = ARCHITECTURES[kind](config)
    found.check()
    return found
