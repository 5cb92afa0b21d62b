"""What callbacks show: code flips, speeds, learning rates. Checked against numbers made another way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch

from razor.errors import RazorError
from razor.quant import set_progress
from razor.train.callbacks import CodeFlips, LearningRates, Throughput
from razor.train.callbacks.base import RunCallback
from razor.train.callbacks.throughput import multiplied, process_peak


def test_what_is_shown_belongs_to_one_step(fit: Any) -> None:
    class Every(RunCallback):
        def after_step(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
            if step in (2, 5):
                self.show(pl_module, {"own/step": float(step)})

    _, rows = fit([Every()], accumulate=2)
    assert [row.get("own/step") for row in rows] == [None, 2, None, None, 5, None]


def test_flips_drift_and_saturation(tiny_student: Callable[..., Any]) -> None:
    student, *_ = tiny_student("w1p58")
    looks, layer = CodeFlips(), student.model.layers[1].mlp.up_proj
    first = looks.look(student)
    assert not [name for name in first if "flipped" in name or "drift" in name]
    nonzero = (layer.quantized_weight(torch.float32) != 0).sum().item()
    in_layer = sum(
        m.weight.numel() for m in student.model.layers[1].modules() if hasattr(m, "quantized_weight")
    )
    unchanged = looks.look(student)
    assert unchanged["codes/flipped"] == 0 and unchanged["codes/scale_drift"] == 0
    with torch.no_grad():
        layer.weight.neg_()  # every code that is not zero becomes its opposite, scales stay
    found = looks.look(student)
    assert found["codes/flipped/layer_01"] == pytest.approx(nonzero / in_layer)
    assert found["codes/flipped/layer_00"] == 0 and 0 < found["codes/flipped"] < nonzero / in_layer
    assert found["codes/scale_drift/layer_01"] == 0
    with torch.no_grad():
        for module in student.modules():
            if hasattr(module, "quantized_weight"):
                module.weight.mul_(2)  # codes stay, every scale doubles
    found = looks.look(student)
    assert found["codes/flipped"] == 0 and found["codes/scale_drift"] == pytest.approx(1, rel=1e-3)  # fp16


@pytest.mark.parametrize("quant", ["mixed_2p79", "w1p58_lsq", "w2", "w4", "w16"])
def test_saturation_is_counted_in_the_codes_of_every_format(
    tiny_student: Callable[..., Any], quant: str
) -> None:
    from razor.quant import encoded

    student, plan, *_ = tiny_student(quant)
    set_progress(student, 0.5)
    found = CodeFlips().look(student)
    expected, of = 0, 0
    for codes, format in _coded(student, plan, encoded):
        rows = [(codes, format)]
        if hasattr(format, "high"):
            chosen = format.rows_high(codes.values)
            rows = [
                (codes.rows(chosen.nonzero()[:, 0]), format.high),
                (codes.rows((~chosen).nonzero()[:, 0]), format.low),
            ]
        expected += sum(int(((c.values == f.lowest) | (c.values == f.highest)).sum()) for c, f in rows)
        of += codes.values.numel()
    assert (found == {}) if quant == "w16" else found["codes/saturated"] == pytest.approx(expected / of)


def _coded(student: Any, plan: Any, encoded: Any) -> list[Any]:
    pairs, seen = [], set()
    for name, place in plan.modules.items():
        module = student.get_submodule(name)
        format = module.weights.format
        if id(module.weight) in seen or not (
            hasattr(place.weights, "group") or hasattr(place.weights, "high")
        ):
            continue
        seen.add(id(module.weight))
        pairs.append((format.encode(module.weight.detach()), format))
    return pairs


def test_a_look_every_so_many_steps_and_at_the_end(fit: Any) -> None:
    _, rows = fit([CodeFlips(every=4)], steps=6, learning_rate=1e-2)
    assert [("codes/flipped" in row) for row in rows] == [False, False, False, True, False, True]
    assert rows[3]["codes/flipped"] > 0 and "codes/flipped/layer_00" in rows[3]


def test_its_memory_is_the_packed_model(tiny_student: Callable[..., Any]) -> None:
    from razor.quant import packed_state

    student, plan, *_ = tiny_student()
    looks = CodeFlips()
    looks.look(student)
    kept = sum(t.nbytes for one in looks.state_dict()["last"].values() for t in one["packed"].values())
    assert kept <= sum(t.nbytes for t in packed_state(student, plan).values())


def test_learning_rates_and_norms_by_group(fit: Any) -> None:
    module, rows = fit([LearningRates()], quant="w1p58_lsq", learning_rate=1e-3)
    for step, row in enumerate(rows):
        factor = module.settings.learning_rate_factor(step, 6)
        assert row["learning_rate/matrices"] == row["learning_rate/vectors"] == pytest.approx(1e-3 * factor)
        assert row["learning_rate/scales"] == pytest.approx(1e-2 * factor)
        parts = [row[f"gradient_norm/{name}"] for name in ("matrices", "vectors", "scales")]
        assert sum(part**2 for part in parts) ** 0.5 == pytest.approx(row["gradient_norm"], rel=1e-5)


def test_speed_memory_and_utilisation(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("razor.train.estimate.speed.matrix_speed", lambda *_: 1e11)
    module, rows = fit([Throughput(every=2)], steps=4, accumulate=2)
    assert ["speed/mfu" in row for row in rows] == [False, True, False, True]
    embedding = module.student.model.embed_tokens.weight.numel()  # looked up in, and not the head's here
    products = sum(p.numel() for p in module.student.parameters()) - embedding
    row = rows[1]
    assert row["speed/mfu"] == pytest.approx(8 * products * row["speed/tokens_per_second"] / 1e11, rel=1e-4)
    assert 0.05 < row["memory/process_peak_gb"] <= 1.001 * process_peak() / 1e9


def test_a_stated_peak_and_none(fit: Any) -> None:
    _, rows = fit([Throughput(peak_flops=2e11)], steps=2)
    assert all("speed/mfu" in row for row in rows)
    assert not Throughput(peak_flops=None).peak_flops


def test_tied_heads_are_multiplied(tiny_student: Callable[..., Any]) -> None:
    student, *_ = tiny_student("mixed_2p79", "tiny_qwen3")
    assert student.lm_head.weight is student.model.embed_tokens.weight
    assert multiplied(student) == sum(p.numel() for p in student.parameters())


def test_measuring_the_machine_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    Throughput._measured(torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: CodeFlips(every=0), r"callbacks\.code_flips\.every='0'.*at least 1"),
        (lambda: Throughput(every=1.5), r"callbacks\.throughput\.every='1.5'"),  # type: ignore[arg-type]
        (lambda: Throughput(peak_flops="fast"), r"peak_flops='fast'.*measured, or null"),
    ],
)
def test_bad_arguments(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(RazorError, match=text):
        make()
