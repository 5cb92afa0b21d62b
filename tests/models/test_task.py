"""What a model is for, and a teacher that Razor trains itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from razor import cli
from razor.errors import RazorError
from razor.models import HubModel, RandomModel, TrainedModel, config_from, task_of
from razor.models.task import check_same_outputs, outputs_of

VIT = {
    "model_type": "vit",
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 1,
    "num_labels": 10,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}


@pytest.mark.parametrize(
    ("option", "task", "outputs"),
    [("tiny_vit", "images", 10), ("resnet18", "images", 10), ("tiny_llama", "text", 272)],
)
def test_task_and_outputs(option: str, task: str, outputs: int) -> None:
    source = cli.model_source(cli.composed("size", [f"model={option}"]))
    assert source.task == task and outputs_of(source.config()) == outputs


def test_models_that_choose_from_other_things_do_not_teach() -> None:
    vit, llama = config_from("vit", VIT), config_from("llama", {"model_type": "llama", "vocab_size": 10})
    with pytest.raises(RazorError, match="teacher=b is a model of text, model=a of images"):
        check_same_outputs("a", vit, "b", llama)
    with pytest.raises(RazorError, match="teacher=b tells 3 classes apart, model=a 10"):
        check_same_outputs("a", vit, "b", config_from("vit", VIT | {"num_labels": 3}))


def test_a_trained_model_is_kept_and_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAZOR_CACHE", str(tmp_path / "cache"))
    source = TrainedModel("small", VIT, "vision/teacher", "digits")
    with pytest.raises(
        RazorError, match=r"not trained yet on this data: .* experiment=vision/teacher model=small"
    ):
        source.prepare()
    net = RandomModel("small", VIT).load(torch.bfloat16)
    net.save_pretrained(tmp_path / "made")
    source.keep(tmp_path / "made", {"train": "a", "held_out": "b"})
    source.prepare()
    for name, weight in source.load(torch.float32).state_dict().items():
        assert torch.equal(weight, net.state_dict()[name].float()), name
    again = TrainedModel("small", VIT, "vision/teacher", "digits")
    assert again.is_there and again.fingerprint() == source.fingerprint() and again.tokenizer() is None
    assert not TrainedModel("small", VIT, "vision/teacher", "other data").is_there
    assert TrainedModel("small", VIT, "vision/teacher").folder == source.folder  # the only one
    assert not TrainedModel("small", VIT | {"num_labels": 5}, "vision/teacher", "digits").is_there


def test_a_local_folder_with_an_image_classifier(tmp_path: Path) -> None:
    RandomModel("small", VIT).load(torch.float32).save_pretrained(tmp_path)
    source = HubModel("folder", str(tmp_path))
    source.prepare()
    assert source.task == "images" and source.tokenizer() is None
    assert type(source.load(torch.float32)).__name__ == "ViTForImageClassification"
    assert task_of(source.config()) == "images"
