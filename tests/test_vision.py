"""Image classifiers through the main job: teacher, student, report, packed folder; what does not go together."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from razor import cli
from razor.cli import trained
from razor.models import inputs_of

TINY = (
    "data=digits",
    "evals=classification",
    "data.rows_per_batch=8",
    "data.held_out=40",
    "trainer.compute_dtype=float32",
    "-data.source.tokens",
    "-data.sequence_length",
)
CKA = "distill.losses.afd.ranking=cka"


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def test_a_convolutional_network_from_one_end_to_the_other(main_job: Any) -> None:
    done = main_job(
        "model=tiny_resnet",
        *TINY,
        CKA,
        "export=[packed,dense]",
        "export.dense.program=true",
        "trainer.max_steps=3",
    )
    assert done.code == 0, done.err
    report = report_of(done.folder)
    assert [row["w_a_kv"] for row in report["rows"]] == ["W16-A16", "W2.79-A8", "W2.79-A8"]
    for row in report["rows"]:
        tasks = row["tasks"]
        assert tasks["accuracy"]["rows"] == 40 and tasks["accuracy"]["value"] == row["average"]
        assert 0 <= tasks["calibration"]["value"] <= 100 and row["held_out_tokens"] == 40
    assert report["images_seen"] == 24 and report["train_images_distinct"] == 1757
    assert not {"tokens_seen", "tokens_per_second"} & set(report)
    assert "razor chat" not in done.out and "up to 24 images" in done.out
    metrics = (done.folder / "logs" / "metrics.csv").read_text().splitlines()
    assert "afd/layer_0" in metrics[0] and "speed/mfu" not in metrics[0] and len(metrics) == 4
    assert "images_per_second" in metrics[0] and "tokens" not in metrics[0].replace("/token_", "")
    proof = json.loads((done.folder / "exports" / "dense" / "manifest.json").read_text())["proof"]
    assert proof["program"] < 1e-5 and (done.folder / "exports" / "dense" / "program.pt2").is_file()
    card = (done.folder / "exports" / "packed" / "README.md").read_text()
    assert (
        "images of 1 x 8 x 8 (channels x height x width), numbers from 0 to 1 less 0.305, divided by" in card
    )
    assert "classes, in this order: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 (config" in card
    for place in ("packed", "exports/packed", "exports/dense"):
        kept = json.loads((done.folder / place / "config.json").read_text())
        assert kept["id2label"]["3"] == "3" and kept["label2id"]["9"] == 9
    about = json.loads((done.folder / "packed" / "razor.json").read_text())["about"]
    assert about["mean"] == "0.305" and about["classes"].startswith("0, 1, 2, ")
    assert "pipeline_tag: image-classification" in card and "AutoModelForImageClassification" in card
    _same_logits_through_transformers(done.folder)


def _same_logits_through_transformers(folder: Path) -> None:
    """The packed folder, its export and the student of the checkpoint."""
    from transformers import AutoModelForImageClassification

    from razor.models import make_student
    from razor.recipe import Recipe

    config = cli.composed("train", ["model=tiny_resnet", "data=digits"])
    source = cli.model_source(config)
    quant = Recipe.load(folder / "recipe.yaml").quant
    assert quant is not None
    student = make_student(source.load(torch.float32), quant.plan(source.skeleton()), torch.float32)
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    student.load_state_dict({name.removeprefix("student."): value for name, value in state.items()})
    batch = _batch(config)
    with torch.no_grad():
        expected = student.eval()(**inputs_of(student, batch)).logits
        for place in (folder / "packed", folder / "exports" / "packed"):
            loaded = AutoModelForImageClassification.from_pretrained(place)
            assert torch.equal(loaded(**inputs_of(loaded, batch)).logits, expected)
            assert not (place / "tokenizer.json").exists()


def _batch(config: Any) -> Any:
    from razor.data.reading import Reading
    from razor.data.rows import Wanted

    corpus = cli.build(config.data.source).corpus(Wanted(None, 40, 0, 1, None, None, Reading()))
    return corpus.held_out.batch(range(8))


def test_attention_relations_of_a_vit_are_compared(main_job: Any) -> None:
    done = main_job("model=tiny_vit", *TINY, "distill=eakld_afd_attn", "trainer.max_steps=2", "logger=csv")
    assert done.code == 0, done.err
    with (done.folder / "logs" / "metrics.csv").open(encoding="utf-8") as stream:
        found = [row["loss/attention"] for row in csv.DictReader(stream) if row.get("loss/attention")]
    assert found and all(float(value) > 0 for value in found)


@pytest.mark.slow
def test_a_family_that_is_one_yaml(main_job: Any) -> None:
    """ConvNeXt V2: no line of Python knows its name; depthwise convolutions, linear layers over channels, GRN."""
    small = [f"model.architecture.{key}" for key in ("hidden_sizes=[8,8,16,16]", "depths=[1,1,1,1]")]
    words = ("model=convnextv2_atto", "model.weights=random", *small, *TINY, CKA, "quant=w1p58")
    done = main_job(*words, "export=onnx", "trainer.max_steps=2")
    assert done.code == 0, done.err
    rows = report_of(done.folder)["rows"]
    assert [row["w_a_kv"] for row in rows] == ["W16-A16", "W1.58-A8", "W1.58-A8"]
    onnx = pytest.importorskip("onnx")
    from razor.export.compressed import Compressed
    from razor.export.loaded import gap, logits
    from razor.export.onnx import FILE, _ran

    compressed = Compressed.open(done.folder)
    made = onnx.load(done.folder / "exports" / "onnx" / FILE)
    assert gap(_ran(made, compressed), logits(compressed.model, compressed)) < 1e-4
    kinds = {tensor.data_type for tensor in made.graph.initializer if tensor.name.endswith(".codes")}
    assert onnx.TensorProto.INT2 in kinds


def test_a_missing_teacher_is_trained_first_and_then_found(main_job: Any) -> None:
    made = trained._training

    def short(*arguments: Any) -> Any:
        config = made(*arguments)
        config.trainer.max_steps, config.data.rows_per_batch = 2, 4
        return config

    main_job.monkeypatch.setattr(trained, "_training", short)
    words = ("experiment=vision/vit_s16_w1p58", "model=tiny_vit", "model.weights=pretrained", *TINY)
    first = main_job(*words, "trainer.max_steps=1", "model.architecture.hidden_size=8")
    assert first.code == 0, first.err
    assert "tiny_vit is not trained yet on this data" in first.out and first.out.count("| teacher ") == 2
    report = report_of(first.folder)
    assert [row["w_a_kv"] for row in report["rows"]] == ["W16-A16", "W1.58-A8", "W1.58-A8"]
    main_job.monkeypatch.setattr(trained, "_training", None)  # nothing can be trained now
    again = main_job(*words, "trainer.max_steps=1", "model.architecture.hidden_size=8", "seed=0")
    assert again.code == 0, again.err
    assert report_of(again.folder)["rows"] == report["rows"]


def test_an_interrupted_run_ends_as_one_that_never_was(main_job: Any) -> None:
    """To the last digit, batch norm's statistics too."""
    from razor.train.module import DistillModule

    words = (
        "model=tiny_resnet",
        *TINY,
        CKA,
        "trainer.max_steps=4",
        "trainer.checkpoint_every=2",
        "logger=none",
    )
    whole = main_job(*words)
    assert whole.code == 0, whole.err
    step = DistillModule.training_step

    def dies(module: Any, *given: Any) -> Any:
        if module.global_step == 3:
            raise OSError("the power went out")
        return step(module, *given)

    with main_job.monkeypatch.context() as patch:
        patch.setattr(DistillModule, "training_step", dies)
        folder = main_job.folder()
        with pytest.raises(OSError, match="power"):
            main_job(*words, folder=folder)
    assert not (folder / "report.json").exists()
    again = main_job.resume(folder)
    assert again.code == 0 and "Continuing from" in again.out, again.err
    assert report_of(folder)["rows"] == report_of(whole.folder)["rows"]
    packed = Path("packed") / "model.safetensors"
    assert (folder / packed).read_bytes() == (whole.folder / packed).read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("model=tiny_llama", *TINY), "model=tiny_llama reads text, and the data is images"),
        (("model=tiny_vit", "evals=none"), "model=tiny_vit reads images, and the data is text"),
        (
            ("model=tiny_vit", *TINY, "evals=offline"),
            "evals asks about text, and model=tiny_vit reads images",
        ),
        (("evals=classification",), "evals asks about images, and model=tiny_llama reads text"),
        (("model=tiny_vit", *TINY, "export=[gguf]"), "export=gguf holds no models of images"),
        (
            ("export=dense", "export.dense.program=true"),
            "export.dense.program=true is for models that read images",
        ),
        (("model=tiny_vit", *TINY, "quant=w4_plus", "start=gptq"), "start=gptq reads text"),
        (
            ("model=tiny_vit", *TINY, "teacher=cached", "distill=kld"),
            "teacher=cached keeps what a teacher says of",
        ),
        (("model=tiny_vit", *TINY, "teacher=tiny_llama"), "teacher=tiny_llama is a model of text"),
        (("model=tiny_resnet", *TINY), "change their shape (widths 8, 8, 16, 16): ranking=cka"),
        (
            ("model=tiny_resnet", *TINY, "distill=eakld_afd_attn", CKA),
            "ImageClassification has no attention",
        ),
        (("model=tiny_resnet", *TINY, CKA, "data.rows_per_batch=1"), "normalizes by the batch"),
        (
            ("model=tiny_resnet", *TINY, CKA, "data.rows_per_batch=3"),
            "data.rows_per_batch=3, and distill.losses.afd.ranking=cka compares layers by how they tell 4 or more",
        ),
        (("model=tiny_resnet", *TINY, CKA, "trainer.compute_dtype=bfloat16"), "wrong in bfloat16 on a CPU"),
        (
            ("model=tiny_resnet", *TINY, CKA, "trainer.gradient_checkpointing=true"),
            "ResNetForImageClassification) cannot",
        ),
        (
            ("model=tiny_vit", *TINY, "data.source.size=9"),
            "data.source.size=9, but this vit reads images of 8",
        ),
        (
            ("model=tiny_vit", *TINY, "model.architecture.num_labels=3"),
            "tells 3 classes apart, the data has 10",
        ),
        (("model=tiny_vit", *TINY, "data.held_out=1797"), "leaves none to train on"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_go_together(words: tuple[str, ...], said: str, main_job: Any) -> None:
    assert said in main_job(*words).problem


def test_verbs_that_need_no_weights(razor: Any) -> None:
    done = razor("plan", "model=vit_s16", "quant=w1p58", "json=true")
    assert done.code == 0 and json.loads(done.out)["kv_cache"] is None
    assert json.loads(done.out)["w_a_kv"] == "W1.58-A8"
    done = razor(
        "estimate", "model=resnet18", "data=digits", "evals=classification", CKA, "flops=1e11", "json=true"
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["images_per_second"] > 0


def test_a_kept_teacher_serves_the_verbs(main_job: Any, razor: Any, tmp_path: Path) -> None:
    """Trained once, it is rounded by `razor quantize`; chat and evaluate say what it is."""
    words = ("experiment=vision/teacher", "model=tiny_vit", *TINY, "trainer.max_steps=1")
    done = main_job(*words, "model.architecture.hidden_size=24")
    assert done.code == 0 and "kept     " in done.out, done.err
    assert "in place of" not in done.out
    assert "in place of the one before" in main_job(*words, "model.architecture.hidden_size=24").out
    model = ("model=tiny_vit", "model.weights=pretrained", "model.architecture.hidden_size=24")
    data = ("data=digits", "data.held_out=40")  # that it was trained on
    made = razor("quantize", *model, *data, "quant=w4", f"out={tmp_path / 'small'}")
    assert made.code == 0 and "W4-A8, " in made.out and "talk" not in made.out, made.err
    about = json.loads((tmp_path / "small" / "razor.json").read_text())["about"]
    assert about["deviation"] == "0.376" and about["size"] == "1 x 8 x 8"
    assert "is an image classifier" in razor("evaluate", str(tmp_path / "small")).problem
    assert (
        "is an image classifier, which answers no text" in razor("chat", f"run={tmp_path / 'small'}").problem
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("model=tiny_vit", "quant=w1p58"), "keeps a teacher of 16 bits, and quant=w1p58 gives"),
        (("model=tiny_vit", "quant=w16"), "keeps a teacher of 16 bits, and quant=w16 gives"),
        (("model=hub", "model.id=./nowhere"), "models that Razor trains itself"),
        (("model=tiny_vit", "export=none"), "keeps the folder that export=dense writes"),
    ],
)
def test_what_is_no_teacher_is_not_kept(words: tuple[str, ...], said: str, main_job: Any) -> None:
    assert said in main_job("experiment=vision/teacher", *TINY, *words).problem


def test_a_teacher_of_other_images_is_not_taken(main_job: Any) -> None:
    """The config is the same, and one image more is there: what was held out then is not what is held out now."""
    from razor.data.sources.digits import Digits

    size = "model.architecture.hidden_size=20"
    done = main_job("experiment=vision/teacher", "model=tiny_vit", *TINY, size, "trainer.max_steps=1")
    assert done.code == 0, done.err
    images = Digits.images
    words = ("model=tiny_vit", "model.weights=pretrained", *TINY, size, "trainer.max_steps=1")
    with main_job.monkeypatch.context() as patch:
        patch.setattr(Digits, "images", lambda source: tuple(part[:-1] for part in images(source)))
        assert "not those that model=tiny_vit was trained and scored on" in main_job(*words).problem
    assert main_job(*words).code == 0


def test_a_model_of_the_hub_keeps_its_order_of_classes(tmp_path: Path) -> None:
    """It calls class 0 light; the folders, by their names, would begin with dark."""
    from razor.cli.teacher import teaching
    from razor.models import auto_class, config_from
    from tests.data.sources.test_image_sources import pictures

    fields = cli.composed("size", ["model=tiny_vit"]).model.architecture
    config = config_from("vit", dict(fields) | {"id2label": {0: "light", 1: "dark"}, "num_labels": 2})
    auto_class(config).from_config(config).save_pretrained(tmp_path / "model")
    source = [
        f"data.source.{word}" for word in (f"path={pictures(tmp_path / 'train')}", "size=8", "channels=1")
    ]
    words = ["model=hub", f"model.id={tmp_path / 'model'}", "data=image_folder", *source, "data.held_out=2"]
    batch = teaching(cli.composed("train", words)).corpus().train.batch(range(8))
    shades = batch.pixel_values[:, 0, 0, 0] * 0.27 + 0.45
    assert torch.equal(batch.labels[:, 0], (shades < 0.5).long())


def test_a_loop_of_ones_own() -> None:
    import copy

    import razor as library
    from razor.distill import ImageBatch

    model = cli.model_source(cli.composed("size", ["model=tiny_vit"])).load(torch.float32)
    teacher = copy.deepcopy(model)
    quant = cli.build(cli.composed("size", ["model=tiny_vit", "quant=w4"]).quant)
    losses = {"kl": {"kind": "ForwardKL"}}
    recipe = {"name": "own", "quant": quant.to_dict(), "distill": {"losses": losses, "weights": {"kl": 1.0}}}
    student = library.quantize(model, recipe)
    distiller = library.Distiller(recipe, student, teacher)
    batch = ImageBatch.of(torch.randn(6, 1, 8, 8), torch.arange(6))
    first, parts = distiller(batch)
    first.backward()
    assert parts["loss/kl"] > 0 and student.classifier.weight.grad.abs().sum() > 0
    with pytest.raises(library.RazorError, match="ViTForImageClassification reads images"):
        distiller(input_ids=torch.zeros(1, 2, dtype=torch.long), labels=torch.zeros(1, 2, dtype=torch.long))


def test_operations_of_an_image_are_counted_by_running_it() -> None:
    """ResNet-18's usual count, 1.82 G multiplications for 224 x 224 in colour; without its head."""
    from razor.train.estimate.images import image_network

    words = ["model=resnet18", "model.architecture.num_channels=3", "model.architecture.image_size=224"]
    source = cli.model_source(cli.composed("size", words))
    found = image_network(source.skeleton(), (3, 224, 224))
    assert found.matrices / 1e9 == pytest.approx(1.81, abs=0.02)
    # torchvision's 11,689,512 have 1,000 classes
    assert found.parameters == 11_689_512 - 990 * (512 + 1)
