"""A plan as a file: it comes back, people can read and edit it, and what is wrong with it is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from razor.errors import RazorError
from razor.quant import Float16, Integer, Placement, Plan, RowMix, Ternary
from razor.quant.plan_file import plan_text


def example(layers: int = 3) -> Plan:
    mixed = RowMix(Integer(4, 32), Ternary(32, factor=1.0), 0.5, "error")
    modules = {"embed": Placement(Integer(4, 32))}
    for layer in range(layers):
        modules[f"layers.{layer}.up"] = Placement(mixed, Integer(8, 32))
        modules[f"layers.{layer}.down"] = Placement(Float16())
    return Plan(modules, Integer(8, 16), Float16("float16"))


def test_comes_back(tmp_path: Path) -> None:
    for plan in (example(), Plan({}), Plan({"a": Placement(Ternary("row"))}, None)):
        plan.save(tmp_path / "plan.yaml")
        assert Plan.load(tmp_path / "plan.yaml").to_dict() == plan.to_dict()


def test_any_yaml_parser_reads_the_plain_data() -> None:
    data = yaml.safe_load(plan_text(example().to_dict()))
    data.pop("formats")
    assert data == example().to_dict()


def test_a_format_is_said_once_and_a_module_takes_one_line() -> None:
    lines = plan_text(example(40).to_dict()).splitlines()
    assert sum("kind: RowMix" in line for line in lines) == 1
    assert "  layers.39.up: {weights: *RowMix_1, activations: *Integer_2}" in lines
    assert len(lines) == 1 + 1 + 6 + 1 + 81 + 2  # comment, formats, modules, kv_cache, rest


@pytest.mark.parametrize(
    "name", ["0", "yes", "null", "a: b", "*x", "#", "~", "1.5", "{", "über", "'", '"', ""]
)
def test_any_name_comes_back(name: str, tmp_path: Path) -> None:
    plan = Plan({name: Placement(Integer(4, 8)), "other": Placement(Integer(4, 8))})
    plan.save(tmp_path / "plan.yaml")
    assert Plan.load(tmp_path / "plan.yaml").to_dict() == plan.to_dict()


def test_edited_by_hand(tmp_path: Path) -> None:
    """Another named format, and one that is written out in place."""
    path = tmp_path / "plan.yaml"
    text = plan_text(example().to_dict())
    text = text.replace("layers.1.up: {weights: *RowMix_1", "layers.1.up: {weights: *Integer_1")
    text = text.replace(
        "layers.2.up: {weights: *RowMix_1", "layers.2.up: {weights: {kind: Ternary, group: 16}"
    )
    path.write_text(text)
    modules = Plan.load(path).modules
    assert modules["layers.1.up"].weights.spec() == Integer(4, 32).spec()
    assert modules["layers.2.up"].weights.spec() == Ternary(16).spec()
    assert modules["layers.0.up"].weights.label == "2.79"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("layers.1.up:", "layers.0.up:"), ["'layers.0.up'", "twice", "line 13"]),
        (("*RowMix_1", "*RowMix_9"), ["no YAML", "RowMix_9"]),
        (("modules:", "moduls:"), ["moduls is unknown", "Did you mean 'modules'?"]),
        (("kind: Ternary", "kind: Ternari"), ["Ternari", "Ternary"]),
        (("width: 4", "width: 99"), ["99", "2 to 8"]),
        (("modules:\n", "modules: [\n"), ["no YAML"]),
        (("up: {weights:", "up: {bits: 3, weights:"), ["modules.layers.0.up.bits", "activations, weights"]),
        (("kv_cache:", "embedding: null\nkv_cache:"), ["embedding is unknown", "kv_cache, modules, rest"]),
        (("rest: *Float16_2", "rest: *Integer_1"), ["rest.kind='Integer'", "Float16"]),
    ],
)
def test_what_is_wrong_is_told(change: tuple[str, str], expected: list[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    text = plan_text(example().to_dict())
    assert change[0] in text
    path.write_text(text.replace(*change))
    with pytest.raises(RazorError) as caught:
        Plan.load(path)
    assert [part for part in ["mine.yaml", *expected] if part not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


def test_what_is_no_plan_at_all(tmp_path: Path) -> None:
    with pytest.raises(RazorError, match=r"nowhere\.yaml.*razor plan"):
        Plan.load(tmp_path / "nowhere.yaml")
    for content in (b"", b"- a\n", b"text", b"\xff\xfe\x00"):
        (tmp_path / "bad.yaml").write_bytes(content)
        with pytest.raises(RazorError, match=r"bad\.yaml"):
            Plan.load(tmp_path / "bad.yaml")
    with pytest.raises(RazorError, match="cannot be read"):
        Plan.load(tmp_path)
