"""The main job from end to end on a tiny model: its folder, its report, what it prints, and sweeps."""

from __future__ import annotations

import csv
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from razor.evals.report import SCHEMA
from razor.export.manifest import check_files

ROW = ["name", "w_a_kv", "tasks", "average", "perplexity", "kl", "ratio_paper", "ratio_disk", "bytes_disk"]
CONF = Path(__file__).resolve().parent.parent / "conf"
FILES = {"plan", "recipe"}  # options that read a file: tests/test_recipe_runs.py
QUANTS = sorted({path.stem for path in (CONF / "quant").glob("*.yaml")} - FILES)
TOWERS = {"towers"}  # of models that see or hear: test_media.py
DISTILLS = sorted({path.stem for path in (CONF / "distill").glob("*.yaml")} - FILES - TOWERS)


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def metrics_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "logs" / "metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


def png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and content[-8:-4] == b"IEND"
    return struct.unpack(">II", content[16:24])


def test_prints_plan_table_and_paths(finished_run: Any) -> None:
    assert finished_run.code == 0, finished_run.err
    out = finished_run.out
    plan, _, rest = out.partition("\nteacher: ")
    for word in (
        "tiny_llama",
        "W2.79-A8-KV8",
        "bits per weight",
        "ratio",
        "4 steps",
        "tokens",
        "GB of memory",
    ):
        assert word in plan
    table = [line for line in rest.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table] == ["", "-" * 9, "teacher", "before", "after"]
    for made in ("report.md", "packed"):
        assert str(finished_run.folder / made)[-40:] in out
    assert "razor chat run=" in out
    assert "distilling" in finished_run.err and "tok/s" in finished_run.err
    assert "Traceback" not in finished_run.err and "Warning" not in finished_run.err


def test_folder_holds_what_was_made(finished_run: Any) -> None:
    folder = finished_run.folder
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names >= {
        "config.yaml",
        "budget.json",
        "report.json",
        "report.md",
        "losses.png",
        "score_vs_ratio.png",
        "logs/metrics.csv",
        "checkpoints/last.ckpt",
        "scores/teacher.json",
        "scores/before.json",
        "scores/after.json",
        "packed/model.safetensors",
        "packed/razor.json",
        "packed/tokenizer.json",
    }
    assert not [path for path in folder.rglob(".*") if path.name != ".hydra"]  # no temporary is left
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["trainer"]["max_steps"] == 4 and config["model"]["name"] == "tiny_llama"
    for figure in ("losses.png", "score_vs_ratio.png"):
        width, height = png_size(folder / figure)
        assert width > 400 and height > 200


def test_report_is_complete(finished_run: Any) -> None:
    report = report_of(finished_run.folder)
    assert report["schema"] == SCHEMA
    assert [row["name"] for row in report["rows"]] == ["teacher", "before", "after"]
    for row in report["rows"]:
        assert set(ROW) <= set(row)
    teacher, before, after = report["rows"]
    assert teacher["kl"] == pytest.approx(0, abs=1e-6) and after["kl"] < before["kl"]
    assert teacher["w_a_kv"] == "W16-A16-KV16" and after["w_a_kv"] == "W2.79-A8-KV8"
    assert teacher["ratio_paper"] == teacher["ratio_disk"] == 1
    weights = finished_run.folder / "packed" / "model.safetensors"
    assert before["bytes_disk"] == after["bytes_disk"] == weights.stat().st_size
    assert after["ratio_disk"] == pytest.approx(teacher["bytes_disk"] / after["bytes_disk"])
    assert report["config"]["quant"]["name"] == "mixed_2p79" and "run" not in report["config"]
    assert report["seed"] == 0 and report["steps"] == 4 and report["tokens_per_second"] > 0
    assert report["versions"]["torch"] == torch.__version__
    assert report["hardware"]["device"] in ("cpu", "cuda", "mps") and report["hardware"]["cores"] >= 1
    markdown = (finished_run.folder / "report.md").read_text()
    assert "| after " in markdown and "losses.png" in markdown and "random weights" in markdown


def test_losses_are_logged_by_name_and_fall(finished_run: Any) -> None:
    rows = metrics_of(finished_run.folder)
    assert [int(row["step"]) for row in rows] == [0, 1, 2, 3]
    for row in rows:
        parts = {name: float(row[f"loss/{name}"]) for name in ("task", "eakld", "afd", "total")}
        expected = 0.1 * parts["task"] + 2 * parts["eakld"] + 0.1 * parts["afd"]
        assert parts["total"] == pytest.approx(expected, rel=1e-4)
        assert float(row["gradient_norm"]) > 0 and float(row["tokens_per_second"]) > 0
        assert 0 <= float(row["eakld/gamma"]) <= 1 and float(row["afd/layer_0"]) in range(1, 5)


def test_checkpoint_holds_the_student_alone(finished_run: Any) -> None:
    checkpoint = torch.load(finished_run.folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert {name.partition(".")[0] for name in checkpoint["state_dict"]} == {"student"}


def test_text_is_written_once(finished_run: Any, main_job: Any) -> None:
    shards = {path: path.stat().st_mtime_ns for path in main_job.cache.rglob("shard_*")}
    assert shards
    main_job.monkeypatch.setattr("razor.data.teacher_made.write", None)  # no teacher can write now
    again = main_job("trainer.max_steps=4", "trainer.learning_rate=3e-4")
    assert again.code == 0, again.err
    assert {path: path.stat().st_mtime_ns for path in main_job.cache.rglob("shard_*")} == shards
    first, second = (report_of(folder)["rows"] for folder in (finished_run.folder, again.folder))
    assert first == second  # another process, the same numbers to the last digit


@pytest.mark.parametrize("quant", QUANTS)
def test_every_recipe_runs(quant: str, main_job: Any) -> None:
    done = main_job(f"quant={quant}", "model=tiny_qwen3", "trainer.max_steps=1")
    assert done.code == 0, done.err
    assert report_of(done.folder)["config"]["quant"]["name"] == quant


@pytest.mark.parametrize("distill", DISTILLS)
def test_every_objective_runs(distill: str, main_job: Any) -> None:
    steps = (
        "trainer.max_steps=6",
        "trainer.learning_rate=3e-4",
    )  # helps on every processor, whatever it rounds
    done = main_job(f"distill={distill}", *steps, "logger=none")
    assert done.code == 0, done.err
    assert not (done.folder / "logs").exists() and not (done.folder / "losses.png").exists()
    _, before, after = report_of(done.folder)["rows"]
    assert after["kl"] < before["kl"] or distill == "ce"
    assert after["perplexity"] < before["perplexity"]
    assert "](losses.png)" not in (done.folder / "report.md").read_text()  # no link to what is not there


def test_activations_and_cache_can_be_left_alone(main_job: Any) -> None:
    done = main_job("quant=w4", "quant.activations=none", "quant.kv_cache=none", "trainer.max_steps=1")
    assert done.code == 0, done.err
    assert report_of(done.folder)["rows"][2]["w_a_kv"] == "W4-A16-KV16"


def test_benchmarks_have_standard_errors(main_job: Any, tmp_path: Path) -> None:
    """On real rows, which lie in the user's own cache; the text does not come from there."""
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"{n} times {n} is {n * n}." for n in range(300)))
    main_job.monkeypatch.delenv("RAZOR_CACHE", raising=False)
    from razor.storage import cache_dir

    main_job.cache = cache_dir()
    done = main_job(
        "evals=quick", "evals.limit=2", "data=local_text", f"data.source.path={text}", "-data.source.tokens"
    )
    assert done.code == 0, done.err
    rows = report_of(done.folder)["rows"]
    for row in rows:
        assert list(row["tasks"]) == ["piqa", "arc_easy", "hellaswag", "lambada_openai", "sciq"]
        tasks = row["tasks"].values()
        assert all(task["stderr"] is not None and task["rows"] == 2 for task in tasks)
        assert row["average"] == pytest.approx(sum(task["value"] for task in tasks) / 5)
    assert "±" in done.out and "average" in done.out


def test_exports_lie_in_the_run(main_job: Any) -> None:
    """Each proven, with the scores of this run on its card; the same command again makes what is missing."""
    done = main_job("export=[packed,gguf]", "quant=w4", "trainer.max_steps=2")
    assert done.code == 0, done.err
    assert {path.name for path in (done.folder / "exports").iterdir()} == {"packed", "gguf"}
    report = report_of(done.folder)
    after = next(row for row in report["rows"] if row["name"] == "after")
    for name in ("packed", "gguf"):
        folder = done.folder / "exports" / name
        check_files(folder)
        card = (folder / "README.md").read_text()
        assert f"{after['perplexity']:.4g}" in card and "quantization-aware distillation" in card
        assert str(Path("exports") / name) in done.out
    shutil.rmtree(done.folder / "exports" / "gguf")  # as if it had been killed before that was there
    again = main_job("export=[packed,gguf]", "quant=w4", "trainer.max_steps=2", folder=done.folder)
    assert again.code == 0 and "nothing to do" not in again.out, again.err
    check_files(done.folder / "exports" / "gguf")
    last = main_job("export=[packed,gguf]", "quant=w4", "trainer.max_steps=2", folder=done.folder)
    assert last.code == 0 and "nothing to do" in last.out


def test_what_no_format_holds_is_told_before_training(main_job: Any) -> None:
    done = main_job("export=[gptq]", "quant=w4", "quant.weights.group=16")
    assert done.code == 2 and "export=gptq" in done.err and "q_proj" in done.err
    assert not (done.folder / "packed").exists()


@pytest.mark.slow
def test_sweep_makes_a_folder_and_a_report_each(main_job: Any) -> None:
    words = main_job.words("quant=w4,mixed_2p79,w1p58", f"hydra.sweep.dir={main_job.home}")
    process = main_job.start("-m", *words)
    out, err = process.communicate(timeout=1200)
    assert process.returncode == 0, err
    folders = sorted(path for path in main_job.home.iterdir() if path.is_dir())
    assert [path.name for path in folders] == [
        f"{n}_tiny_llama_{name}" for n, name in enumerate(["w4", "mixed_2p79", "w1p58"])
    ]
    widths = [report_of(folder)["rows"][2]["w_a_kv"] for folder in folders]
    assert widths == ["W4-A8-KV8", "W2.79-A8-KV8", "W1.58-A8-KV8"]
    assert all((folder / "packed" / "razor.json").is_file() for folder in folders)
    assert out.count("| teacher ") == 3
