"""Models that see and hear through the main job: towers and decoder distilled together, packed, loaded again."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from razor import cli
from razor.models import inputs_of

TINY = (
    "data=digits_and_sounds",
    "data.source.questions=18",
    "data.source.size=16",
    "data.source.seconds=0.2",
    "data.held_out=4",
    "data.rows_per_batch=3",
    "-data.source.tokens",
    "-data.sequence_length",
)
OMNI = ("model=tiny_omni", "distill=towers", "quant=w4", *TINY, "trainer.compute_dtype=float32")
SEES = ("model=tiny_qwen3_vl", "distill=towers", "distill.weights.audio=0", *TINY, "data.source.seconds=0")


def logged(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "logs" / "metrics.csv").open()))


def batch_of(*words: str) -> Any:
    """Two questions, and the source of the model that reads them."""
    from razor.data.reading import Reading
    from razor.data.rows import Wanted
    from razor.models.media_reader import MediaReader

    config = cli.composed("train", [word for word in words if not word.startswith("-")])
    source = cli.model_source(config)
    wanted = Wanted(source.tokenizer(), 2, 0, 512, None, None, Reading(), MediaReader(source))
    return cli.build(config.data.source).corpus(wanted).held_out.batch(range(2)), source


@pytest.mark.parametrize(
    "words", [pytest.param(OMNI, id="omni"), pytest.param(SEES, id="sees", marks=pytest.mark.slow)]
)
def test_two_steps_with_all_towers(words: tuple[str, ...], main_job: Any) -> None:
    towers = ["vision", "audio"] if words is OMNI else ["vision"]
    done = main_job(*words, "trainer.max_steps=2", "logger=csv", "export=[packed,dense]")
    assert done.code == 0, done.err
    rows = logged(done.folder)
    assert len(rows) == 2
    for name in ("task", "eakld", "afd", *towers):
        assert all(float(row[f"loss/{name}"]) > 0 for row in rows), name
    assert ("loss/audio" in rows[0]) == (words is OMNI)
    report = json.loads((done.folder / "report.json").read_text())
    assert list(report["towers"]) == towers and 4 < report["towers"]["vision"]["bits_per_weight"] < 7
    assert report["rows"][0]["w_a_kv"] == "W16-A16-KV16" and "razor chat" not in done.out
    _same_logits_through_transformers(done.folder, words)


def _same_logits_through_transformers(folder: Path, words: tuple[str, ...]) -> None:
    """The packed folder and its export against the student of the checkpoint, on text with images (and sound)."""
    from transformers import AutoModelForMultimodalLM

    from razor.models import make_student
    from razor.recipe import Recipe

    batch, source = batch_of(*words)
    quant = Recipe.load(folder / "recipe.yaml").quant
    assert quant is not None
    dtype = torch.float32 if words is OMNI else torch.bfloat16
    student = make_student(source.load(dtype), quant.plan(source.skeleton()), dtype)
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    student.load_state_dict({name.removeprefix("student."): value for name, value in state.items()})
    with torch.no_grad():
        expected = student.eval()(**inputs_of(student, batch)).logits
        for place in (folder / "packed", folder / "exports" / "packed"):
            loaded = AutoModelForMultimodalLM.from_pretrained(place)
            assert torch.equal(loaded(**inputs_of(loaded, batch)).logits, expected)
    assert "pipeline_tag: any-to-any" in (folder / "exports" / "packed" / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("model=qwen2p5_omni_7b",), "model=qwen2p5_omni_7b reads media, and the data is text: choose"),
        ((*TINY,), "model=tiny_llama reads text, and the data is media"),
        ((*OMNI, "evals=offline"), "evals asks about text, and model=tiny_omni reads media: evals=none"),
        ((*OMNI, "export=[gguf]"), "export=gguf holds no models of media"),
        ((*OMNI, "quant=w4_plus", "start=gptq"), "start=gptq reads text, and model=tiny_omni media"),
        ((*OMNI, "teacher=cached", "distill=kld"), "keeps what a teacher says of text: for media"),
        ((*OMNI, "teacher=tiny_llama"), "teacher=tiny_llama is a model of text, model=tiny_omni of media"),
        ((*OMNI, "trainer.compute_dtype=bfloat16"), "conv1' is a padded convolution"),
        ((*SEES, "data.source.seconds=0.2"), "model=tiny_qwen3_vl hears nothing, and the data has sound"),
        ((*SEES, "distill.weights.audio=1"), "tower=audio, but Qwen3VLForConditionalGeneration has no such"),
        (("distill=towers",), "tower=vision, but LlamaForCausalLM has no such tower. Choices: none"),
        ((*OMNI, "data.held_out=18"), "data.held_out=18 of 18 questions leaves none"),
        (
            (*OMNI, "++data.sequence_length=8"),
            "tokens with its images and sound, and data.sequence_length is 8",
        ),
        (("model=tiny_omni", *TINY, "data.source.size=12"), "data.source.size=12 must be a multiple of 8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_go_together(words: tuple[str, ...], said: str, main_job: Any) -> None:
    assert said in main_job(*words).problem


def test_a_plan_tells_each_tower(razor: Any) -> None:
    """Numbers of weights: the decoder has those of Qwen2.5-7B (7.62 B)."""
    done = razor("plan", "model=qwen2p5_omni_7b", "quant=w4", "json=true")
    found = json.loads(done.out)
    assert done.code == 0 and found["w_a_kv"] == "W4-A8-KV8"
    towers = {name: part["parameters"] for name, part in found["towers"].items()}
    assert towers == {"vision": 676_550_144, "audio": 639_647_232}
    assert found["parameters"] - sum(towers.values()) == 7_615_616_512
    formats = {line["module"]: line["weights"] for line in found["modules"]}
    assert formats["model.visual.blocks.0.mlp.down_proj"] == "int4 g36"
    assert formats["model.visual.blocks.0.mlp.up_proj"] == "int4 g32"
    other = razor(
        "plan", "model=qwen2p5_omni_7b", "quant=w1p58", "quant.exclude=[model.audio_tower.*]"
    )  # another width for a tower, by its name
    assert other.code == 0 and "audio tower" in other.out, other.err
    lines = {line.split("  ")[0]: line.split() for line in other.out.splitlines() if " tower " in line}
    assert lines["audio tower"][-4] == "16.000" and float(lines["vision tower"][-4]) < 1.7


def test_a_tower_is_not_ranked_by_the_cka_of_a_few_images(main_job: Any) -> None:
    """Of three; a decoder, whose examples are tokens, may be."""
    vision = ("distill/loss@distill.losses.vision=afd", "distill.losses.vision.top=1")
    said = "data.rows_per_batch=3, and distill.losses.vision.ranking=cka"
    assert said in main_job(*OMNI, *vision, "distill.losses.vision.ranking=cka").problem
    done = main_job(*OMNI, "distill.losses.afd.ranking=cka", "trainer.max_steps=1")
    assert done.code == 0, done.err


def test_sounds_that_are_too_long_or_too_short() -> None:
    """One would be cut off unsaid, of the other nothing is left."""
    import numpy as np

    from razor.errors import RazorError
    from razor.models.media_reader import MediaReader

    reader = MediaReader(cli.model_source(cli.composed("size", ["model=tiny_omni"])))

    def read(count: int) -> Any:
        return reader("What is heard?", "A noise.", [], [np.zeros(count, dtype=np.float32)])

    assert read(16000).media["input_features"].shape[-1] == 100
    for count, said in (
        (16160, r"A sound of 1.01 s is longer than the 1 s that WhisperFeatureExtractor takes"),
        (200, r"A sound of 200 numbers is too short for WhisperFeatureExtractor, which needs more than 200"),
        (250, r"A sound of 250 numbers \(0.0156 s\) is too short for model=tiny_omni"),
    ):
        with pytest.raises(RazorError, match=said):
            read(count)
