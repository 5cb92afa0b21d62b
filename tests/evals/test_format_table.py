"""The table of formats: its figures, and that the document shows what the code says."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from razor.cli import build, composed, conf_dir
from razor.evals.format_table import at_group, drawn, format_table, relative_error
from razor.quant import Format, Grouped, Integer, RowMix, Ternary

DOCUMENT = Path(__file__).parents[2] / "docs" / "formats.md"


def shipped() -> dict[str, Format]:
    names = sorted(path.stem for path in (conf_dir() / "quant" / "format").glob("*.yaml"))
    return {name: build(composed("formats", [f"+quant/format@format={name}"]).format) for name in names}


def cells(table: str) -> dict[str, dict[str, str]]:
    """Cells by row and column name."""
    head, _, *rows = ([cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines())
    return {row[0].strip("`"): dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def shown() -> dict[str, dict[str, str]]:
    text = DOCUMENT.read_text(encoding="utf-8")
    return cells(text.split("<!-- formats: begin -->")[1].split("<!-- formats: end -->")[0].strip())


def test_the_document_shows_what_the_code_says():
    theirs, ours = shown(), cells(format_table(shipped()))
    assert list(theirs) == list(ours)
    for name, row in ours.items():
        for column, cell in row.items():
            assert theirs[name][column] == cell, (name, column)


@pytest.mark.slow
def test_the_errors_on_real_weights_are_those_of_the_model():
    from razor.cli import model_source
    from razor.evals.format_table import decoder_matrices

    matrices = decoder_matrices(model_source(composed("formats", [])))
    for name in ("ternary", "int4"):
        error = relative_error(at_group(shipped()[name], 64), matrices())
        assert f"{error:.4f}" == shown()[name]["error, smollm2_135m"]


def test_the_distributions_are_what_they_are_called():
    gaussian, laplace = drawn("Gaussian"), drawn("Laplace")
    assert gaussian.std() == pytest.approx(1, abs=0.01) and laplace.std() == pytest.approx(2**0.5, abs=0.01)
    assert laplace.abs().mean() == pytest.approx(1, abs=0.01)  # its mean magnitude is its parameter
    assert (gaussian**4).mean() == pytest.approx(3, abs=0.1) and laplace.mean() == pytest.approx(0, abs=0.01)


def test_bits_are_codes_and_scales():
    table = cells(format_table({"t": Ternary(64), "i": Integer(4, 64)}))
    assert table["t"]["bits at 128"] == "1.705" and table["i"]["bits at 32"] == "4.500"
    assert float(table["i"]["bits at row"]) == pytest.approx(4 + 16 / 4096, abs=5e-4)


def test_the_error_of_a_uniform_rounding_is_known():
    """A scale of 1 for numbers between codes: the error of rounding is uniform, with variance 1/12."""
    x = torch.rand(64, 1024, generator=torch.Generator().manual_seed(0)) * 254 - 127
    x[:, 0] = 127
    expected = math.sqrt(1 / 12) / x.square().mean().sqrt()
    assert relative_error(Integer(8, 1024), [x]) == pytest.approx(float(expected), rel=0.02)


def test_another_group_reaches_every_part():
    mixed = at_group(RowMix(Integer(4, 64), Ternary(64), 0.5), 32)
    assert isinstance(mixed, RowMix) and mixed.high.group == mixed.low.group == 32


def test_the_format_of_the_document_works():
    """The class in the section on a format of your own."""
    from razor.quant.codewords import Trits

    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    names = {"Grouped": Grouped, "Trits": Trits, "Tensor": torch.Tensor}
    exec(next(block for block in blocks if "class Halves" in block), names)
    format, x = names["Halves"](16), torch.randn(4, 32)
    assert torch.equal(
        format.decode(format.unpack(format.pack(format.encode(x)), x.shape)), format.quantize(x)
    )
    assert format.bits(x.shape) == 1.58 * 128 + 16 * 8
