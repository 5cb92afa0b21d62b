"""Which part of a model is what, for both kinds of models and for one that Razor does not know."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from razor import cli
from razor.errors import RazorError
from razor.quant import measure
from razor.quant.anatomy import body_of, entrance_of, head_of, layers_of, reads_images, tied


def skeleton(model: str) -> nn.Module:
    return cli.model_source(cli.composed("size", [f"model={model}"])).skeleton()


@pytest.mark.parametrize(("model", "first"), [("tiny_resnet", (7, 7)), ("tiny_vit", (2, 2))])
def test_parts_of_an_image_classifier(model: str, first: tuple[int, int]) -> None:
    made = skeleton(model)
    assert reads_images(made) and len(layers_of(made)) == 3 and not tied(made)
    assert head_of(made).out_features == 10 and head_of(made) not in list(body_of(made).modules())
    assert [part.kernel_size for part in entrance_of(made)] == [first]


def test_parts_of_a_language_model() -> None:
    made = skeleton("tiny_qwen3")
    assert not reads_images(made) and entrance_of(made) == []
    assert layers_of(made) is made.model.layers and head_of(made) is made.lm_head and tied(made)


def test_first_and_last_layer_are_the_ends_of_a_plan() -> None:
    """They get the embedding's format, and sizes count them there: the mean of the others is the nominal width."""
    config = cli.composed("size", ["model=resnet18", "quant=mixed_2p79"])
    recipe, made = cli.build(config.quant), cli.model_source(config).skeleton()
    plan = recipe.plan(made)
    labels = {name: place.weights.label for name, place in plan.modules.items()}
    ends = {"resnet.embedder.embedder.convolution", "classifier.1"}
    assert {labels.pop(name) for name in ends} == {"4"} and set(labels.values()) == {"2.79"}
    assert measure(made, plan).code_bits == pytest.approx(2.79)
    assert plan.kv_cache is None and recipe.w_a_kv == "W2.79-A8"


class Odd(nn.Module):
    """An image classifier that keeps everything somewhere else."""

    main_input_name, base_model_prefix = "pixel_values", "net"

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def test_what_is_not_found_is_named() -> None:
    with pytest.raises(RazorError, match="Odd has no body under its base_model_prefix"):
        layers_of(Odd())
    with pytest.raises(RazorError, match=r"does not look \(body.layers, .*body.encoder.blocks\)"):
        layers_of(Odd(net=nn.Sequential(nn.Linear(2, 2))))
    with pytest.raises(RazorError, match="no `classifier` that ends in a linear layer"):
        head_of(Odd(classifier=nn.Identity()))


def test_a_plain_module_has_no_ends() -> None:
    assert head_of(nn.Linear(2, 2)) is None and entrance_of(nn.Linear(2, 2)) == []
    assert not reads_images(SimpleNamespace())  # type: ignore[arg-type]
    assert torch.is_tensor(nn.Linear(2, 2).weight)
