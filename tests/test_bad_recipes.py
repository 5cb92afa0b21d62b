"""Ten malformed recipes and what each is answered, in one line: path, value and choices.

docs/recipe.md shows them. `python tests/test_bad_recipes.py` prints its table anew when a text has changed.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from razor.errors import RazorError

ROOT = Path(__file__).resolve().parent.parent
GOOD = ROOT / "docs" / "examples" / "recipe.yaml"
MARKS = "<!-- bad recipes: begin -->\n", "<!-- bad recipes: end -->"
NOTHING = object()

# path in the recipe, what stands there instead, beginning of the answer
BAD: list[tuple[str, Any, str]] = [
    ("qunat", {}, "qunat is unknown. Did you mean 'quant'? Choices: compute_dtype, distill, name, quant."),
    ("compute_dtype", "bf16", "compute_dtype='bf16'. Did you mean 'bfloat16'? Choices: bfloat16, float16, "),
    ("quant.embedding", NOTHING, "quant.embedding is missing: QuantRecipe needs it."),
    ("quant.weights.low.kind", "Terary", "quant.weights.low.kind='Terary' is unknown. Did you mean 'Ternary'?"),
    ("quant.weights.high.widht", 4, "quant.weights.high.widht is unknown. Did you mean 'width'? Choices: group, "),
    ("quant.embedding.width", "4", "quant.embedding.width='4' must be a whole number, not text."),
    ("quant.weights.fraction", 1.5, "quant.weights: Row fraction '1.5' must lie in 0..1"),
    ("quant.activations.group", 48, "quant.activations: Group 48 does not divide the 64 inputs of 'model.layers."),
    ("quant.exclude", ["*.down_prj"], "quant.exclude[0]: '*.down_prj' matches no module. Did you mean '*.down_p"),
    ("distill.weights.eakdl", 2.0, "distill.weights names 'eakdl'. Did you mean 'eakld'? Choices: afd, eakld,"),
]  # fmt: skip


def malformed(path: str, value: Any) -> dict[str, Any]:
    """The example's recipe with one thing changed."""
    recipe = yaml.safe_load(GOOD.read_text())
    *parents, last = path.split(".")
    place = recipe
    for parent in parents:
        place = place[parent]
    if value is NOTHING:
        del place[last]
    else:
        place[last] = value
    return recipe


@cache
def model() -> Any:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    shape = {"vocab_size": 272, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2)
        )


def answer(path: str, value: Any) -> str:
    """What a person reads who loads the recipe and quantizes a small Llama by it."""
    import razor

    with pytest.raises(RazorError) as problem:
        razor.quantize(copy.deepcopy(model()), razor.Recipe.load(malformed(path, value)))
    return str(problem.value)


def table() -> str:
    lines = ["| in the recipe | what is said |", "|---|---|"]
    for path, value, _ in BAD:
        given = (
            "left out" if value is NOTHING else yaml.safe_dump(value, default_flow_style=True).split("\n")[0]
        )
        lines.append(f"| `{path}`: {given if value is NOTHING else f'`{given}`'} | {answer(path, value)} |")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(("path", "value", "text"), BAD, ids=[path for path, _, _ in BAD])
def test_a_malformed_recipe_is_answered_in_one_line(path: str, value: Any, text: str) -> None:
    found = answer(path, value)
    assert found.startswith(text)
    assert "\n" not in found and "|" not in found


def test_the_recipe_is_good_without_the_change() -> None:
    import razor

    assert razor.quantize(copy.deepcopy(model()), GOOD).razor.recipe.name == "example"


def test_the_document_shows_what_is_said() -> None:
    """In a process of its own: other tests define formats, which would be among the choices."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    shown = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8").split(MARKS[0])[1].split(MARKS[1])[0]
    assert shown == done.stdout


if __name__ == "__main__":
    print(table(), end="")
