"""Loggers: none asks a question or stops a run, and a resumed run goes on in the log it has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import Logger

from razor.errors import RazorError
from razor.evals.held_out import HeldOut
from razor.evals.report import Report, Row
from razor.evals.scores import Score, Scores
from razor.train.loggers import (
    close,
    closing,
    mlflow_logger,
    publish,
    tensorboard_logger,
    wandb_logger,
)
from razor.train.loggers.described import Described
from razor.train.loggers.forgiving import Forgiving
from razor.train.loggers.mlflow import safe

ROOT = Path(__file__).parents[2]


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Nobody is logged in anywhere."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def finished(stranger: Path) -> tuple[Path, Report]:
    """The folder of a run of a sweep, as it is when a report is published, and that report."""
    import matplotlib.image
    import numpy as np

    folder = stranger / "sweep_1" / "0_tiny"
    (folder / "packed").mkdir(parents=True)
    config = "model: {name: tiny}\nquant: {name: w4}\ndistill: {losses: {kld: {}, task: {}}}\ntrainer: {steps: 3}\n"
    for name, text in (("config.yaml", config), ("recipe.yaml", "name: w4\n"), ("report.json", "{}")):
        (folder / name).write_text(text)
    for name in ("razor.json", "model.safetensors"):
        (folder / "packed" / name).write_text("{}")
    for name in ("losses.png", "score_vs_ratio.png"):
        matplotlib.image.imsave(folder / name, np.zeros((4, 6, 3)))
    scores = Scores([Score("piqa", "acc_norm", 61.5, 1.2, 100)])
    rows = [
        Row(name, "W4", scores, HeldOut(3.5, 0.125, 90.0, 10), 4.0, 3.5, 1000)
        for name in ("teacher", "after")
    ]
    return folder, Report("tiny, w4", rows, {"steps": 3}, figures=["losses"])


def run(make: Callable[..., Logger], folder: Path, report: Report, steps: range, **options: Any) -> Logger:
    """A run's life with a logger: steps, the end of training, the report, the end."""
    logger = make(folder=folder, name=folder.name, **options)
    for step in steps:
        logger.log_metrics(
            {"loss/total": step / 8, "codes/flipped": 0.5, "codes/flipped/layer_00": 0.25}, step
        )
        logger.save()
    logger.finalize("success")
    publish([logger], report, folder)
    close([logger])
    return logger


def test_what_a_run_is_called(finished: tuple[Path, Report]) -> None:
    folder, _ = finished
    described = Described.of(folder)
    assert described.tags == ["tiny", "w4", "kld+task"] and described.sweep == "sweep_1"
    assert described.flat() == {
        "model.name": "tiny", "quant.name": "w4", "distill.losses.kld": {}, "distill.losses.task": {},
        "trainer.steps": 3,
    }  # fmt: skip
    folder.parent.rename(folder.parents[1] / "mine")
    moved = folder.parents[1] / "mine" / folder.name
    assert Described.of(moved).sweep is None
    (moved.parent / "multirun.yaml").write_text("")
    assert Described.of(moved).sweep == "mine"
    assert Described.of(moved.parent) == Described({}, "", "", (), None)


def test_tensorboard_continues_and_shows_the_report(finished: tuple[Path, Report]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, report = finished
    run(tensorboard_logger, folder, report, range(2))
    run(tensorboard_logger, folder, report, range(2, 4))
    events = EventAccumulator(str(folder / "logs" / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss/total")] == [(n, n / 8) for n in range(4)]
    assert [e.value for e in events.Scalars("codes/flipped/layer_00")] == [0.25] * 4
    assert events.Scalars("final/after/piqa")[-1].value == 61.5
    assert set(events.Tags()["images"]) == {"losses", "score_vs_ratio"}
    text = events.Tensors("report/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert text == report.table()


def test_mlflow_continues_and_keeps_the_report(finished: tuple[Path, Report]) -> None:
    from mlflow.tracking import MlflowClient

    folder, report = finished
    run(mlflow_logger, folder, report, range(2))
    logger = mlflow_logger(folder=folder, name="again", artifacts="all")
    logger.log_metrics({"loss/total": 2 / 8, "gradient_norm": 1.0}, 2)
    client = MlflowClient((folder.parent / "mlruns").as_uri())
    known = (folder / "logs" / "mlflow.id").read_text().strip()
    assert client.get_run(known).info.status == "RUNNING"
    publish([logger], report, folder)
    close([logger])
    (experiment,) = [e for e in client.search_experiments() if e.name == "razor"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == known and found.info.status == "FINISHED"
    history = client.get_metric_history(known, "loss/total")
    assert sorted((m.step, m.value) for m in history) == [(n, n / 8) for n in range(3)]
    assert (
        found.data.metrics["codes/flipped.layer_00"] == 0.25
        and found.data.metrics["final/after.piqa"] == 61.5
    )
    assert found.data.params["trainer.steps"] == "3"
    assert {found.data.tags[key] for key in ("model", "quant", "sweep")} == {"tiny", "w4", "sweep_1"}
    kept = {file.path for file in client.list_artifacts(known)}
    assert {"report.json", "losses.png", "recipe.yaml", "razor.json", "packed"} <= kept


def test_names_that_mlflow_can_hold() -> None:
    assert safe("gradient_norm") == "step/gradient_norm" and safe("loss/total") == "loss/total"
    assert safe("codes/flipped/layer_00") == "codes/flipped.layer_00"


def records(folder: Path) -> list[Any]:
    """Everything in the offline W&B files of a run, in order of time."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        until = time.monotonic() + 20
        while (content := path.read_bytes()) and time.monotonic() < until:  # the service writes on a while
            time.sleep(0.2)
            if path.read_bytes() == content:
                break
        for data in entries(content):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            found.append(record)
    return found


def entries(content: bytes) -> Iterator[bytes]:
    """The entries of a LevelDB log behind W&B's seven bytes: blocks of 32 KiB, entries cut at their ends."""
    place, whole = 7, b""
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # full, last
            yield whole
            whole = b""


def test_wandb_offline_is_one_run_with_everything(finished: tuple[Path, Report], capsys: Any) -> None:
    folder, report = finished
    run(wandb_logger, folder, report, range(2))
    time.sleep(1)  # W&B names its parts by the second
    run(wandb_logger, folder, report, range(2, 3), artifacts="all")
    parts = list((folder / "wandb").glob("offline-run-*"))
    identity = (folder / "logs" / "wandb.id").read_text().strip()
    assert len(parts) == 2 and all(part.name.endswith(identity) for part in parts)
    assert f"wandb sync {folder}/wandb/offline-run-*-{identity}" in capsys.readouterr().out
    found = records(folder)
    started = [record.run for record in found if record.WhichOneof("record_type") == "run"]
    assert {one.run_id for one in started} == {identity} and {one.project for one in started} == {"razor"}
    assert {one.run_group for one in started} == {"sweep_1"} and {one.job_type for one in started} == {
        "distill"
    }
    assert set(started[0].tags) == {"tiny", "w4", "kld+task"}
    config = {update.key: json.loads(update.value_json) for update in started[0].config.update}
    assert config["model"] == {"name": "tiny"} and config["trainer"] == {"steps": 3}
    history = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.WhichOneof("record_type") == "history"
    ]
    losses = [(row["trainer/global_step"], row["loss/total"]) for row in history if "loss/total" in row]
    assert losses == [(n, n / 8) for n in range(3)]
    panels = next(row for row in history if "evaluation/_type" in row)
    assert panels["evaluation/_type"] == "table-file" and panels["losses/_type"] == "image-file"
    (table,) = parts[0].rglob("evaluation*.table.json")
    content = json.loads(table.read_text())
    assert content["columns"][:3] == ["model", "W-A-KV", "piqa"] and content["data"][1][:3] == [
        "after",
        "W4",
        61.5,
    ]


def test_wandb_artifacts_and_their_aliases(
    finished: tuple[Path, Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    kept: list[Any] = []
    honest = wandb.Run.log_artifact
    monkeypatch.setattr(
        wandb.Run,
        "log_artifact",
        lambda self, artifact, **options: (
            kept.append((artifact, options)) or honest(self, artifact, **options)
        ),
    )
    folder, report = finished
    for artifacts in ("none", "report", "all"):
        run(wandb_logger, folder, report, range(1), artifacts=artifacts)
    kept = [
        (artifact, options) for artifact, options in kept if not artifact.name.startswith("run-")
    ]  # tables
    assert [artifact.name.partition(":")[0] for artifact, _ in kept] == ["tiny-w4-report"] * 2 + [
        "tiny-w4-packed"
    ]
    assert all(options["aliases"] == ["latest", "score-61.5"] for _, options in kept)
    assert {"report.json", "recipe.yaml", "razor.json", "losses.png"} <= set(kept[0][0].manifest.entries)
    assert set(kept[2][0].manifest.entries) == {"razor.json", "model.safetensors"}


def mode_of(folder: Path, **options: Any) -> str:
    logger: Any = wandb_logger(folder, "run", **options)
    return str(logger.inner.mode)


def test_wandb_is_offline_without_a_login(stranger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mode_of(stranger) == "offline"
    with pytest.raises(RazorError, match=r"mode=online, but nobody is logged in.*wandb login"):
        mode_of(stranger, mode="online")
    (stranger / ".netrc").write_text("machine api.wandb.ai login user password key\n")
    (stranger / ".netrc").chmod(0o600)
    assert mode_of(stranger) == "online" and mode_of(stranger, mode="offline") == "offline"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert mode_of(stranger) == "offline"  # logged in, but not there
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert mode_of(stranger) == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert mode_of(stranger, mode="online") == "offline"
    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.delenv("WANDB_API_KEY")
    assert mode_of(stranger) == "offline" and "WANDB_MODE" in os.environ and not os.environ["WANDB_MODE"]


@pytest.mark.parametrize(
    ("make", "options", "text"),
    [
        (wandb_logger, {"mode": "maybe"}, r"logger\.wandb\.mode='maybe'.*auto, online, offline"),
        (wandb_logger, {"artifacts": "some"}, r"logger\.wandb\.artifacts='some'.*report, all, none"),
        (mlflow_logger, {"artifacts": "some"}, r"logger\.mlflow\.artifacts='some'"),
        (mlflow_logger, {"tracking_uri": "ftp://nowhere"}, r"logger=mlflow cannot use 'ftp://nowhere'"),
    ],
)
def test_bad_options(stranger: Path, make: Callable[..., Logger], options: dict[str, str], text: str) -> None:
    with pytest.raises(RazorError, match=text):
        make(folder=stranger, name="run", **options)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (tensorboard_logger, r"logger=tensorboard needs .*pip install 'razor-qad\[tensorboard\]'"),
        (mlflow_logger, r"logger=mlflow needs .*pip install 'razor-qad\[mlflow\]'"),
        (wandb_logger, r"logger=wandb needs .*pip install 'wandb'"),
    ],
)
def test_a_missing_package_is_named(
    stranger: Path, make: Callable[..., Logger], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RazorError, match=text):
        make(stranger, "run")


PROGRAM = """
import sys
from pathlib import Path
from razor.train.loggers import close, wandb_logger
logger = wandb_logger(Path(sys.argv[1]), "run", timeout=4, mode=sys.argv[2])
for step in range(3):
    logger.log_metrics({"loss/total": 0.5}, step)
close([logger])
"""


def stranger_process(folder: Path, mode: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), mode],
        env=variables | {"HOME": str(folder), "PYTHONPATH": str(ROOT)} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.mark.slow
def test_a_server_that_cannot_be_reached_turns_the_run_offline(tmp_path: Path) -> None:
    """With a key, no terminal, and nobody behind the address."""
    away = {"WANDB_API_KEY": "k" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    done = stranger_process(tmp_path, "auto", **away)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.strip().splitlines()
    assert line.startswith("W&B cannot be reached, so this run is logged offline (")
    assert sum(record.WhichOneof("record_type") == "history" for record in records(tmp_path)) == 3


def test_online_means_online(stranger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb.errors import CommError

    def away(self: Any) -> None:
        raise CommError("nobody there")

    monkeypatch.setattr("lightning.pytorch.loggers.WandbLogger.experiment", property(away))
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    with pytest.raises(RazorError, match=r"mode=online, but the server cannot be reached \(nobody there\)"):
        wandb_logger(stranger, "run", mode="online").log_metrics({"loss": 1.0}, 0)


@pytest.mark.slow
def test_a_proxy_that_refuses(tmp_path: Path) -> None:
    proxy = {"HTTPS_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    done = stranger_process(tmp_path, "auto", WANDB_API_KEY="k" * 40, **proxy)
    assert done.returncode == 0 and "logged offline" in done.stdout, done.stderr
    assert list(tmp_path.glob("wandb/offline-run-*"))


class Broken(Logger):
    """Fails at the second metric."""

    name = version = None

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[int | None] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.logged.append(step)
        if len(self.logged) > 1:
            raise ConnectionError("gone\nfar away")

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        raise ConnectionError

    def publish(self, report: Report, folder: Path) -> None:
        self.logged.append(-1)


def test_a_failing_logger_is_mentioned_once_and_left_alone(
    finished: tuple[Path, Report], capsys: Any
) -> None:
    inner = Broken()
    logger = Forgiving("mine", inner)
    for step in range(5):
        logger.log_metrics({"loss": 1.0}, step)
    logger.log_hyperparams({})
    assert inner.logged == [0, 1]
    publish([logger], finished[1], finished[0])  # one more chance for what people look for
    assert inner.logged == [0, 1, -1]
    close([logger])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "logger=mine failed and is left alone from here on (ConnectionError: gone)."


def test_closing_says_how_it_ended() -> None:
    class Plain(Broken):
        def finalize(self, status: str) -> None:
            self.logged.append(status)  # type: ignore[arg-type]

    loggers = [Plain(), Forgiving("mine", Plain())]
    with closing(loggers):
        pass
    with pytest.raises(KeyboardInterrupt), closing(loggers):
        raise KeyboardInterrupt
    assert loggers[0].logged == loggers[1].inner.logged == ["success", "failed"]  # type: ignore[attr-defined]


def test_errors_of_a_person_are_not_forgiven() -> None:
    def refuse() -> None:
        raise RazorError("not so")

    with pytest.raises(RazorError, match="not so"):
        Forgiving("mine", Broken()).attempt(refuse)


def test_a_whole_run_of_a_stranger_stays_offline(finished_run: Any) -> None:
    """`finished_run` logs to both, with nobody logged in and nobody there to answer."""
    assert finished_run.code == 0, finished_run.err
    (part,) = (finished_run.folder / "wandb").glob("offline-run-*")
    assert f"wandb sync {finished_run.folder}/wandb/offline-run-*" in finished_run.out.replace(
        os.path.relpath(finished_run.folder, ROOT), str(finished_run.folder)
    )
    assert list(part.rglob("evaluation*.table.json")) and list(part.rglob("score_vs_ratio*.png"))


def test_any_mix_of_loggers_in_one_run(main_job: Any, stranger: Path) -> None:
    done = main_job("logger=[csv,tensorboard,mlflow]")
    assert done.code == 0, done.err
    logs = done.folder / "logs"
    assert (logs / "metrics.csv").is_file() and list((logs / "tensorboard").glob("events.*"))
    assert (done.folder.parent / "mlruns").is_dir() and "failed" not in done.out
