"""The study of allocation: which cells there are, and that each has the bits it is compared at."""

from __future__ import annotations

import json
from typing import Any

import pytest

from razor.errors import RazorError
from tests.test_studies import load

run, tables = load("allocation/run"), load("allocation/tables")
TINY = ("model=tiny_llama", "rung=tiny", "mix=text: 1", "tokens=3000", "held_out=4", "sequence_length=128")


def test_cells_are_the_papers_and_one_for_each_score() -> None:
    found = run.cases_of(run.DEFAULTS)
    names = [f"{case.quant}_{case.method}" for case in found]
    assert len(set(names)) == len(names) and names[0] == "mixed_2p79_every_nth"
    assert "mixed_1p88_fisher_row" in names and "mixed_2p79_kl_matrix" in names
    assert not any(case.score == "kl" and case.granularity == "row" for case in found)
    with pytest.raises(RazorError, match="granularity=cell"):
        run.main(["granularity=cell"])
    with pytest.raises(RazorError, match="rows=0 must be at least 1"):
        run.main(["rows=0"])


def test_a_plan_has_no_more_bits_than_what_it_is_compared_with(
    tmp_path: Any, tiny_cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAZOR_CACHE", str(tiny_cache))
    words = [*TINY, "quant=mixed_2p79", "score=weight_error", "swaps=1", "rows=4", "kl_rows=2"]
    assert run.main([*words, f"results={tmp_path}"]) == 0
    cells = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "tiny").glob("*.json")}
    assert set(cells) == {
        "mixed_2p79_every_nth_s0",
        "mixed_2p79_by_error_s0",
        "mixed_2p79_weight_error_matrix_swaps1_s0",
        "mixed_2p79_weight_error_row_swaps1_s0",
    }
    base = cells["mixed_2p79_every_nth_s0"]
    for name, cell in cells.items():
        assert cell["held_out"]["kl"] > 0 and cell["held_out"]["tokens"] == base["held_out"]["tokens"]
        if name.startswith("mixed_2p79_weight"):
            assert (
                0.99 * base["bits_per_weight"]
                < cell["bits_per_weight"]
                <= base["bits_per_weight"] * (1 + 1e-9)
            )
            assert cell["calibration_kl"][1] <= cell["calibration_kl"][0]
    assert run.main([*words, f"results={tmp_path}"]) == 0  # all there already


def test_the_table_holds_plans_against_the_papers(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.test_studies import cell, cells

    monkeypatch.setattr(tables, "HERE", tmp_path)
    assert tables.allocation("x") == tables.NOT_YET
    more = {"granularity": "row", "swaps": 0, "code_bits": 2.79}
    for method, kl in (("every_nth", 10.0), ("fisher_row", 4.0)):
        path = tmp_path / "results" / "x" / f"{method}.json"
        cells.write(path, cell("mixed_2p79", method, kl, score="fisher", **more))
    lines = tables.allocation("x").splitlines()
    assert lines[2].startswith("| `mixed_2p79` | every n-th row (the paper) | 2.79 |") and "+0 %" in lines[2]
    assert "rows by `fisher`" in lines[3] and "| 4.000 | -60 % |" in lines[3]
