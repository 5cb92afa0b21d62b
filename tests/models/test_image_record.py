"""Recording image classifiers: the head's input, feature maps, attention, in training and packed dtypes."""

from __future__ import annotations

import pytest
import torch

from razor import cli
from razor.distill import Batch, ImageBatch, Needs
from razor.errors import RazorError
from razor.models import inputs_of, make_student, record, shape_of

MODELS = ("tiny_resnet", "tiny_vit")


def source(model: str, *words: str):
    config = cli.composed("size", [f"model={model}", *words])
    return cli.model_source(config), cli.build(config.quant)


def images(count: int = 4) -> ImageBatch:
    generator = torch.Generator().manual_seed(0)
    return ImageBatch.of(torch.randn(count, 1, 8, 8, generator=generator), torch.arange(count))


@pytest.mark.parametrize("model", MODELS)
def test_hidden_and_head_give_the_models_own_logits(model: str) -> None:
    net, batch = source(model)[0].load(torch.float32), images()
    trace = record(net, batch)
    logits = net(**inputs_of(net, batch)).logits
    assert trace.hidden.shape[:2] == (4, 1)
    assert torch.allclose(trace.hidden[:, 0] @ trace.head_weight.T + trace.head_bias, logits, atol=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_a_student_computes_with_stored_numbers(model: str) -> None:
    made, recipe = source(model)
    net, batch = made.load(torch.float32), images()
    student = make_student(net, recipe.plan(made.skeleton()), torch.float32).eval()
    trace = record(student, batch)
    logits = student(**inputs_of(student, batch)).logits
    assert torch.allclose(trace.hidden[:, 0] @ trace.head_weight.T + trace.head_bias, logits, atol=1e-6)
    assert not torch.allclose(logits, net(**inputs_of(net, batch)).logits, atol=1e-3)


@pytest.mark.parametrize("model", MODELS)
def test_states_are_those_of_transformers_place_by_place(model: str) -> None:
    net, batch = source(model)[0].load(torch.float32), images()
    shape, everything = shape_of(net), Needs(states=frozenset(range(4)))
    states = record(net, batch, everything).states
    assert tuple(states[i].shape[2] for i in range(4)) == shape.widths
    assert tuple(states[i].shape[1] for i in range(4)) == shape.places
    theirs = net(batch.pixel_values, output_hidden_states=True).hidden_states
    for index in range(3):  # the last one is taken after the final norm
        other = theirs[index]
        other = other.flatten(2).transpose(1, 2) if other.ndim == 4 else other
        assert torch.equal(states[index], other), index


def test_gradients_reach_the_pixels_of_every_stage() -> None:
    made, recipe = source("tiny_resnet")
    student = make_student(made.load(torch.float32), recipe.plan(made.skeleton()), torch.float32)
    trace = record(student, images(), Needs(states=frozenset({1, 3})))
    (trace.hidden.square().sum() + trace.states[1].square().sum()).backward()
    missing = [name for name, p in student.named_parameters() if p.grad is None and "classifier" not in name]
    assert missing == []


def test_attention_of_a_vision_transformer() -> None:
    net, batch = source("tiny_vit")[0].load(torch.float32), images()
    inputs = record(net, batch, Needs(attention=frozenset({2}))).attention[2]
    assert inputs.queries.shape == (4, 2, 17, 8)
    with pytest.raises(RazorError, match="Layer 1 of ResNetForImageClassification"):
        record(source("tiny_resnet")[0].load(torch.float32), batch, Needs(attention=frozenset({1})))


def test_text_and_images_are_not_mixed_up() -> None:
    ids = torch.zeros(1, 4, dtype=torch.long)
    text = Batch(ids, ids, torch.arange(4).unsqueeze(0), ids)
    with pytest.raises(RazorError, match="reads images, and the batch is of text"):
        record(source("tiny_vit")[0].load(torch.float32), text)
    with pytest.raises(RazorError, match="reads text, and the batch is of images"):
        record(source("tiny_llama")[0].load(torch.float32), images())
