"""Razor: low-bit compression of language models by quantization-aware distillation.

A frozen 16-bit teacher, a student whose weights, activations and KV cache are quantized while it trains,
and losses between the two. One folder for each step: `quant` (formats), `distill` (losses), `models`,
`data`, `evals`, `export`, `train`, `serve`.

For a training loop of your own, these are enough (docs/recipe.md):

    recipe = razor.Recipe.load("recipe.yaml")
    student = razor.quantize(copy.deepcopy(teacher), recipe)
    distiller = razor.Distiller(recipe, student, teacher)
    loss, parts = distiller(input_ids=ids, attention_mask=mask, labels=labels)
    razor.save(student, tokenizer, "small")
    model, tokenizer = razor.load("small")

Importing it lets Transformers load a packed folder: `AutoModelForCausalLM.from_pretrained("small")`; and on a CPU
without instructions for bfloat16 it makes torch's 16-bit products as fast as those in fp32 (`half_products`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from razor.on_import import when_imported

if TYPE_CHECKING:
    from razor.distiller import Distiller
    from razor.errors import RazorError
    from razor.export.folder import load, save
    from razor.export.hf_quantizer import RazorConfig
    from razor.optimizer import parameter_groups
    from razor.recipe import Recipe, quantize

__version__ = "0.1.0"
__all__ = ["Distiller", "RazorConfig", "RazorError", "Recipe", "load", "parameter_groups", "quantize", "save"]

_HOMES = {
    "Distiller": "razor.distiller",
    "RazorConfig": "razor.export.hf_quantizer",
    "RazorError": "razor.errors",
    "Recipe": "razor.recipe",
    "load": "razor.export.folder",
    "parameter_groups": "razor.optimizer",
    "quantize": "razor.recipe",
    "save": "razor.export.folder",
}
"""Looked up when asked for, so that `import razor` stays light."""


_ROOMS = ("quant", "distill", "models")


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"razor.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'razor' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_ROOMS})


def _register() -> None:
    import_module("razor.export.hf_quantizer")  # which registers itself as it is imported


def _fast_products() -> None:
    import_module("razor.half_products").install()


when_imported("transformers.quantizers.auto", _register)
when_imported("torch", _fast_products)
