"""metrics.csv: a row a step, written at once, and gone on with by a resumed run."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from razor.train.loggers import close, csv_logger


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


def test_columns_that_come_and_go(tmp_path: Path) -> None:
    logger = csv_logger(tmp_path, "run")
    for step in range(4):
        logger.log_metrics({"loss": 0.5} | ({"codes": 0.1} if step % 2 else {}), step)
    assert [row["codes"] for row in read(tmp_path)] == ["", "0.1", "", "0.1"]


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
