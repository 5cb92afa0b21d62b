"""Runs in one table: which are repeats, which cannot be compared, and where the frontier lies."""

from __future__ import annotations

import csv
import io
import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from razor.errors import RazorError
from razor.evals.compare import Comparison, compare, frontier
from razor.evals.compare_numbers import match
from razor.evals.compare_runs import Run, gather
from razor.evals.compare_table import csv_text, letter, markdown, records, write
from razor.storage import flat

BITS = {"w4": 4.5, "mixed_2p79": 3.2, "w1p58": 2.5}


def report(
    quant: str = "w4", kl: float = 0.5, seed: int = 0, average: float | None = None, **changes: Any
) -> dict[str, Any]:
    """What a run leaves; `changes` are keys of the config, or facts of the report if it has such a fact."""
    rows = [
        {"name": name, "tasks": {}, "average": average, "perplexity": 10 + value, "kl": value}
        | {"ratio_paper": 1.0 if name == "teacher" else 16 / BITS[quant], "bytes_disk": 1_500_000}
        for name, value in (("teacher", 0.0), ("before", 4 * kl), ("after", kl))
    ]
    if average is not None:
        for row in rows:
            row["tasks"] = {
                "piqa": {"value": average - 1, "rows": 50},
                "sciq": {"value": average + 1, "rows": 50},
            }
    config: dict[str, Any] = {
        "seed": seed,
        "quant": {"name": quant, "weights": {"width": BITS[quant]}},
        "distill": {"weights": {"kld": 1.0}},
        "trainer": {"max_steps": 10, "learning_rate": 1e-3},
        "data": {"sequence_length": 128, "seed": seed},
        "logger": {"csv": {"name": str(kl)}},
    }
    facts: dict[str, Any] = {
        "schema": 1,
        "title": quant,
        "rows": rows,
        "model": "tiny",
        "model_fingerprint": "abc",
        "seed": seed,
        "steps": 10,
        "tokens_seen": 1280,
        "data": {"train": f"t{seed}", "held_out": f"h{seed}"},
        "hardware": {"device": "cpu", "name": "one"},
        "config": config,
    }
    for key, value in changes.items():
        if key in facts:
            facts[key] = value
        else:
            group, _, name = key.partition("__")
            config[group][name] = value
    return facts


def runs(*reports: dict[str, Any]) -> list[Run]:
    return [Run(Path(f"runs/{number}_{found['title']}"), found) for number, found in enumerate(reports)]


def table(comparison: Comparison) -> list[dict[str, str]]:
    """The Markdown table as a list of dicts."""
    lines = [line for line in markdown(comparison, []).splitlines() if line.startswith("|")]
    head, _, *body = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [dict(zip(head, line, strict=True)) for line in body]


def test_repeats_become_a_mean_and_a_standard_deviation() -> None:
    values = [0.4, 0.5, 0.75]
    found = compare(runs(*(report(kl=kl, seed=seed) for seed, kl in enumerate(values))))
    (line,) = found.lines
    assert line.seeds == "0, 1, 2" and not line.marks
    assert line.mean("kl") == pytest.approx(sum(values) / 3)
    assert line.spread("kl") == pytest.approx(statistics.stdev(values))
    (row,) = table(found)
    assert row["seed"] == "0, 1, 2" and row["KL"] == "0.550 ±0.180" and row["run"] == "0_w4 (+2)"
    assert (
        len(compare(runs(*(report(kl=kl, seed=s) for s, kl in enumerate(values))), seeds="each").lines) == 3
    )


def test_only_seeds_make_repeats() -> None:
    other = compare(runs(report(seed=0), report(seed=1, trainer__learning_rate=3e-3)))
    assert len(other.lines) == 2
    same = compare(runs(report(seed=0), report(seed=0)))  # a rerun is no second seed
    assert len(same.lines) == 2 and all(line.spread("kl") is None for line in same.lines)
    assert len(compare(runs(report(seed=0), report(seed=1, model_fingerprint="other"))).lines) == 2


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model_fingerprint": "xyz"}, "model: tiny, xyz, not tiny, abc"),
        ({"data": {"train": "t0", "held_out": "other"}}, "held-out text: other, not h0"),
        ({"data": {"train": "other", "held_out": "h0"}}, "training text: other, not t0"),
        ({"tokens_seen": 99_999}, "tokens trained: 99,999, not 1,280"),
        ({"data__sequence_length": 256}, "sequence length: 256, not 128"),
        ({"seed": 7}, "seeds: 7, not 0"),
    ],
)
def test_what_cannot_be_compared_is_marked_with_the_reason(change: dict[str, Any], expected: str) -> None:
    found = compare(runs(report("w4"), report("mixed_2p79"), report("w1p58", **change)))
    marks = {line.first.quant: line.marks for line in found.lines}
    assert marks["w4"] == marks["mixed_2p79"] == []
    assert marks["w1p58"] == [expected]
    text = markdown(found, [])
    assert f"- [a] not comparable, {expected}" in text and "2_w1p58 [a]" in text
    assert records(found)[-1]["not_comparable"] == [expected]


def test_train_splits_of_benchmarks_are_told_and_marked() -> None:
    trained = report("mixed_2p79") | {"benchmarks_in_training": ["piqa", "boolq"]}
    told = "1_mixed_2p79: trained on the train splits of piqa, boolq; "
    told += "scores on these are of tasks that were trained on."
    found = compare(runs(report("w4"), trained, report("w1p58") | {"benchmarks_in_training": []}))
    assert [line.marks for line in found.lines if line.marks] == [
        ["benchmarks trained on: piqa, boolq, not none"]
    ]
    assert found.notes.count(told) == 1 and f"- {told}" in markdown(found, [])
    alike = compare(runs(trained, trained | {"seed": 1}), seeds="each")  # not marked, but told of both
    assert not any("benchmarks" in mark for line in alike.lines for mark in line.marks)
    assert sum("trained on the train splits of piqa, boolq" in note for note in alike.notes) == 2


def test_other_benchmarks_are_marked() -> None:
    fewer = report("w4", average=50.0)
    for row in fewer["rows"]:
        row["tasks"]["piqa"]["rows"] = 10
    shots = report("w1p58", average=40.0)
    shots["config"]["evals"] = {"num_fewshot": 5}
    found = compare(runs(report(average=45.0), report("mixed_2p79", average=44.0), fewer, shots))
    marked = [line.marks for line in found.lines if line.marks]
    assert len(marked) == 2
    assert any(
        "benchmarks: piqa (10 rows), sciq (50 rows), not piqa (50 rows)" in m
        for marks in marked
        for m in marks
    )
    assert any("num_fewshot=5" in m for marks in marked for m in marks)


def test_hardware_is_a_note_alone() -> None:
    found = compare(runs(report("w4"), report("w1p58", hardware={"device": "cpu", "name": "two"})))
    assert all(not line.marks for line in found.lines)
    assert len(found.notes) == 1 and "cpu: one; cpu: two" in found.notes[0]


def test_text_that_was_not_recorded_is_said() -> None:
    old = report("w1p58")
    del old["data"]
    found = compare(runs(report("w4"), report("mixed_2p79"), old))
    assert any("older version" in note for note in found.notes)


def test_only_keys_that_differ_and_are_not_told_become_columns() -> None:
    found = compare(
        runs(report("w4"), report("w1p58"), report("w1p58", trainer__learning_rate=3e-3, data__seed=5))
    )
    assert found.differing == [
        "trainer.learning_rate"
    ]  # not quant.weights.width, which follows from its name
    assert [row["trainer.learning_rate"] for row in table(found)] == ["0.001", "0.001", "0.003"]
    same_name = report("w4")
    same_name["config"]["quant"]["weights"]["width"] = 5
    assert compare(runs(report("w4"), same_name)).differing == ["quant.weights.width"]


def test_rows_are_sorted_from_wide_to_narrow_and_better_first() -> None:
    found = compare(runs(report("w1p58", 2.0), report("w4", 0.9), report("w1p58", 1.0), report("w4", 0.2)))
    assert [(line.first.quant, line.mean("kl")) for line in found.lines] == [
        ("w4", 0.2),
        ("w4", 0.9),
        ("w1p58", 1.0),
        ("w1p58", 2.0),
    ]
    scored = compare(runs(report("w4", 0.1, average=40.0), report("w4", 0.2, average=50.0)))
    assert [line.mean("average") for line in scored.lines] == [50.0, 40.0]  # the average ranks, not the KL


def test_all_rows_of_a_run() -> None:
    found = compare(runs(report(kl=0.5)), rows=("after", "before", "teacher"))
    assert [(line.name, line.mean("kl")) for line in found.lines] == [
        ("0_w4, teacher", 0.0),
        ("0_w4", 0.5),
        ("0_w4, before", 2.0),
    ]
    assert [line.bits for line in found.lines] == pytest.approx([16.0, 4.5, 4.5])


def test_numbers_of_the_table() -> None:
    (row,) = table(compare(runs(report("mixed_2p79", 0.5, average=45.0))))
    assert row["piqa"] == "44.0" and row["sciq"] == "46.0" and row["average"] == "45.0"
    assert (
        row["bits"] == "3.20" and row["ratio"] == "5.00x" and row["MB"] == "1.5" and row["tokens"] == "1,280"
    )
    assert row["losses"] == "kld" and row["perplexity"] == "10.5"


def test_csv_holds_the_numbers_in_full() -> None:
    found = compare(runs(report(kl=1 / 3), report(kl=2 / 3, seed=1), report("w1p58", 0.7)))
    first, second = csv.DictReader(io.StringIO(csv_text(found)))
    assert float(first["kl"]) == pytest.approx(0.5, abs=1e-15) and first["seeds"] == "0; 1"
    assert float(first["kl_sd"]) == pytest.approx(statistics.stdev([1 / 3, 2 / 3]), abs=1e-15)
    assert second["kl_sd"] == "" and float(second["bits_per_weight"]) == pytest.approx(2.5)
    assert second["not_comparable"] == "seeds: 0, not 0, 1"


def test_frontier_against_the_definition() -> None:
    points = [(4.5, -0.2), (4.5, -0.3), (3.2, -0.5), (2.5, -0.4), (2.0, -2.0), (5.0, -0.25)]
    wanted = [
        p
        for p in points
        if not any(
            (q[0] <= p[0] and q[1] >= p[1]) and q != p for q in points
        )  # nothing is at least as good in both
    ]
    assert frontier(points) == sorted(wanted)
    assert frontier([]) == []


@pytest.mark.parametrize("average", [None, 45.0])
def test_files_are_written(tmp_path: Path, average: float | None) -> None:
    found = compare(runs(report("w4", average=average), report("w1p58", 1.5, average=average, tokens_seen=5)))
    written = write(found, [(Path("runs/x"), "unfinished")], tmp_path / "out")
    assert [path.name for path in written] == ["compare.md", "compare.csv", "pareto.png"]
    assert written[2].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    text = written[0].read_text()
    assert "- runs/x: unfinished" in text and "](pareto.png)" in text


def figure_of(comparison: Comparison, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The axes that would be drawn."""
    from razor.evals import compare_figure

    kept: list[Any] = []
    monkeypatch.setattr(compare_figure, "_save", lambda figure, path: kept.append(figure))
    assert compare_figure.draw_pareto(comparison, Path("x.png"))
    return kept[0].axes[0]


def test_the_figure_draws_hollow_what_is_not_comparable(monkeypatch: pytest.MonkeyPatch) -> None:
    reports = [
        report("w4", 0.2),
        report("mixed_2p79", 0.5),
        report("w1p58", 0.9),
        report("w1p58", 0.1, tokens_seen=9),
    ]
    axes = figure_of(compare(runs(*reports)), monkeypatch)
    lines = {line.get_label(): line for line in axes.get_lines() if line.get_label()[0] != "_"}
    frontier_line = next(line for label, line in lines.items() if label == "frontier")
    assert frontier_line.get_ydata().tolist() == pytest.approx([0.9, 0.5, 0.2])  # without the hollow one
    faces = [container.lines[0].get_markerfacecolor() for container in axes.containers]
    assert sorted(face == "white" for face in faces) == [False, True]
    assert axes.yaxis_inverted() and {text.get_text() for text in axes.texts} == {"w4", "mixed_2p79", "w1p58"}


def folder_of(path: Path, content: dict[str, Any] | str | None, **files: str) -> Path:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("{}")
    if content is not None:
        (path / "report.json").write_text(content if isinstance(content, str) else json.dumps(content))
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text)
    return path


def test_runs_are_found_all_the_way_down(tmp_path: Path) -> None:
    for number, name in enumerate(["10_b", "2_a"]):
        folder_of(tmp_path / "sweep" / name, report(seed=number))
    folder_of(tmp_path / "sweep" / "0_c", None)
    folder_of(tmp_path / "sweep" / "1_d", None, failure__json=json.dumps({"reason": "no disk"}))
    (tmp_path / "sweep" / ".submitit" / "1").mkdir(parents=True)
    found, others = gather([tmp_path])
    assert [run.name for run in found] == ["2_a", "10_b"]
    assert [(path.name, why) for path, why in others] == [("0_c", "unfinished"), ("1_d", "failed: no disk")]
    assert len(gather([tmp_path, tmp_path / "sweep" / "2_a"])[0]) == 2  # named twice, there once


@pytest.mark.parametrize(
    ("content", "expected"),
    [("{", "damaged"), ('{"rows": []}', "damaged"), (report() | {"schema": 99}, "schema 99")],
)
def test_reports_that_cannot_be_read(tmp_path: Path, content: Any, expected: str) -> None:
    folder_of(tmp_path / "run", content)
    with pytest.raises(RazorError, match=expected):
        gather([tmp_path])


def test_no_runs(tmp_path: Path) -> None:
    with pytest.raises(RazorError, match="holds no run"):
        gather([tmp_path])
    with pytest.raises(RazorError, match="is no folder"):
        gather([tmp_path / "nowhere"])


def test_letters() -> None:
    assert [letter(n) for n in (0, 25, 26, 27, 52)] == ["a", "z", "aa", "ab", "ba"]


def test_flat() -> None:
    assert flat({"a": {"b": 1, "c": {}}, "d": [2, {"e": None}]}) == {
        "a.b": 1,
        "a.c": {},
        "d.0": 2,
        "d.1.e": None,
    }


def finished(
    path: Path, kl: float = 0.5, loss: str = "0.25", speed: str = "100", weights: bytes = b"w"
) -> Path:
    folder_of(path, report(kl=kl))
    (path / "logs").mkdir()
    (path / "packed").mkdir()
    (path / "logs" / "metrics.csv").write_text(
        f"loss/total,step,tokens_per_second\n1.5,0,7\n{loss},1,{speed}\n"
    )
    (path / "packed" / "model.safetensors").write_bytes(weights)
    return path


def test_equal_runs_match(tmp_path: Path) -> None:
    found = match(finished(tmp_path / "a"), finished(tmp_path / "b", speed="999"))
    assert found.equal and found.compared["logged values"] == 2 and found.compared["packed files"] == 1
    assert found.compared["numbers of the report"] == 3 * 7


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"kl": 0.5000000000000001}, "after.kl"),
        ({"loss": "0.2500000001"}, "loss/total, step 1"),
        ({"loss": ""}, "loss/total, step 1"),
        ({"weights": b"v"}, "packed/model.safetensors"),
    ],
)
def test_every_kind_of_difference_is_found(tmp_path: Path, change: dict[str, Any], name: str) -> None:
    found = match(finished(tmp_path / "a"), finished(tmp_path / "b", **change))
    assert not found.equal and name in [difference.name for difference in found.differences]


def test_the_size_of_a_difference(tmp_path: Path) -> None:
    found = match(finished(tmp_path / "a"), finished(tmp_path / "b", loss="0.2", weights=b"v"))
    sizes = {difference.name: difference.size for difference in found.differences}
    assert sizes["loss/total, step 1"] == pytest.approx(0.2)
    assert sizes["packed/model.safetensors"] == float("inf")


def test_a_run_given_twice_counts_once_and_a_damaged_reason_is_said(tmp_path: Path) -> None:
    from razor.evals.compare_runs import gather

    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("{}")
    (run / "failure.json").write_text('{"reason": "cut')
    done, others = gather([run, tmp_path / "run" / ".." / "run"])
    assert done == [] and [text for _, text in others] == ["failed; its failure.json is damaged"]
