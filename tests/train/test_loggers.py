"""Loggers: none asks a question, and a resumed run goes on in the file it has."""

from __future__ import annotations

import csv
import netrc
from pathlib import Path
from typing import Any

import pytest

from razor.errors import RazorError
from razor.train.loggers import close, csv_logger, wandb_logger


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "logs" / "metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


def log(folder: Path, steps: range, **values: float) -> None:
    logger = csv_logger(folder, "run")
    for step in steps:
        logger.log_metrics({"loss": step / 8} | values, step)
    close([logger])


def test_a_row_a_step_at_once(tmp_path: Path) -> None:
    logger = csv_logger(tmp_path, "run")
    for step in range(3):
        logger.log_metrics({"loss": 0.5}, step)
        assert [int(row["step"]) for row in read(tmp_path)] == list(range(step + 1))


def test_a_resumed_run_goes_on_in_its_file(tmp_path: Path) -> None:
    log(tmp_path, range(8))
    log(tmp_path, range(5, 12))
    assert [(int(row["step"]), float(row["loss"])) for row in read(tmp_path)] == [
        (n, n / 8) for n in range(12)
    ]


def test_a_row_cut_by_a_kill_goes(tmp_path: Path) -> None:
    log(tmp_path, range(4), tokens=100.0)
    path = tmp_path / "logs" / "metrics.csv"
    path.write_text(path.read_text() + "0.5,4")  # the last field is not there yet
    log(tmp_path, range(4, 6), tokens=100.0)
    assert [int(row["step"]) for row in read(tmp_path)] == list(range(6))


def test_new_columns_join_the_old_ones(tmp_path: Path) -> None:
    log(tmp_path, range(2))
    log(tmp_path, range(2, 4), gamma=0.25)
    assert [row["gamma"] for row in read(tmp_path)] == ["", "", "0.25", "0.25"]
    assert [int(row["step"]) for row in read(tmp_path)] == list(range(4))


@pytest.mark.parametrize("content", ["", "loss,step\n"])
def test_an_empty_file_is_filled(tmp_path: Path, content: str) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "metrics.csv").write_text(content)
    log(tmp_path, range(2))
    assert [int(row["step"]) for row in read(tmp_path)] == [0, 1]


def test_a_run_that_logs_nothing_more_forgets_nothing(tmp_path: Path) -> None:
    log(tmp_path, range(3))
    close([csv_logger(tmp_path, "run")])
    assert len(read(tmp_path)) == 3


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Nobody is logged in anywhere."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_wandb_is_offline_without_a_login(stranger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(**options: Any) -> bool:
        return wandb_logger(stranger, "run", **options)._offline

    assert offline()
    assert not offline(mode="online")
    (stranger / ".netrc").write_text("machine api.wandb.ai login user password key\n")
    (stranger / ".netrc").chmod(0o600)
    assert netrc.netrc().authenticators("api.wandb.ai") and not offline()
    assert offline(mode="offline")
    (stranger / ".netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert not offline()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert offline() and offline(mode="online")
    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.delenv("WANDB_API_KEY")
    assert offline()


def test_wandb_refuses_other_modes(stranger: Path) -> None:
    with pytest.raises(RazorError, match=r"logger\.wandb\.mode='maybe'.*auto, online, offline"):
        wandb_logger(stranger, "run", mode="maybe")


def test_a_whole_run_of_a_stranger_stays_offline(finished_run: Any) -> None:
    """`finished_run` logs to both, with nobody logged in and nobody there to answer."""
    assert finished_run.code == 0, finished_run.err
    assert list((finished_run.folder / "wandb").glob("offline-run-*/*.wandb"))
    assert "wandb" not in finished_run.out + finished_run.err.replace(str(finished_run.folder), "")
