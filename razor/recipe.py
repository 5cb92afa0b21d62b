"""The recipe of a compression: which kind of module gets which format, whatever the model.

A recipe speaks of decoder weights, embedding, activations and KV cache; applied to a model it becomes a
`Plan` that names every module. `W2.79-A8-KV8` is a recipe's short name: width of the decoder's linear
weights, of their input activations, and of keys and values.
"""

from __future__ import annotations

from torch import nn

from razor.errors import RazorError
from razor.quant import Format, Placement, Plan


class QuantRecipe:
    """Formats by kind of module.

    Args:
        name: option name, for tables and file names.
        weights: the decoder's linear weights.
        embedding: token embedding and output head (one weight when tied).
        activations: inputs of every linear layer, the head's included; None or "none" leaves them alone.
        kv_cache: keys (after rotary embedding) and values; None or "none" leaves them alone.
    """

    def __init__(
        self,
        name: str,
        weights: Format,
        embedding: Format,
        activations: Format | str | None,
        kv_cache: Format | str | None,
    ) -> None:
        self.name = name
        self.weights = _required("weights", weights)
        self.embedding = _required("embedding", embedding)
        self.activations = _optional("activations", activations)
        self.kv_cache = _optional("kv_cache", kv_cache)

    @property
    def w_a_kv(self) -> str:
        """Widths of weights, activations and KV cache, as in 'W2.79-A8-KV8'."""
        activations, kv_cache = (x.label if x else "16" for x in (self.activations, self.kv_cache))
        return f"W{self.weights.label}-A{activations}-KV{kv_cache}"

    def plan(self, model: nn.Module) -> Plan:
        """The plan for a model (any device, also meta).

        Raises:
            RazorError: a format cannot hold a module; the text names it.
        """
        head = getattr(model, "get_output_embeddings", lambda: None)()
        modules = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.Embedding):
                modules[name] = Placement(self.embedding)
            elif isinstance(module, nn.Linear):
                weights = self.embedding if module is head else self.weights
                modules[name] = Placement(weights, self.activations)
        plan = Plan(modules, self.kv_cache)
        plan.check(model)
        self._check_kv(model)
        return plan

    def _check_kv(self, model: nn.Module) -> None:
        for name, module in model.named_modules():
            width = getattr(module, "head_dim", None)
            if self.kv_cache is not None and hasattr(module, "num_key_value_groups") and width:
                self.kv_cache.check((width,), f"{name} (KV, head_dim)")
                return


def _required(key: str, format: object) -> Format:
    if not isinstance(format, Format):
        raise RazorError(
            f"quant.{key}='{format}' is no number format; choose one: quant/format@quant.{key}=int4."
        )
    return format


def _optional(key: str, format: object) -> Format | None:
    return None if format in (None, "none") else _required(key, format)
