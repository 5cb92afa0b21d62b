"""Callbacks that change what is trained: averages, frozen weights, falling bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from razor.errors import RazorError
from razor.quant import FakeQuantizer, Integer, LearnedScale, RowMix, StretchedElastic, Ternary
from razor.train.callbacks import EMA, BitSchedule, Freeze, Stage

GROUP = 32  # of tiny_llama


class Weights(L.Callback):
    """Remembers the student after every optimizer step, and which formats its weights had then."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []
        self.labels: list[dict[str, str]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.steps.append({name: p.detach().clone() for name, p in pl_module.student.named_parameters()})

    def on_before_zero_grad(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        quantizers = {n: m for n, m in pl_module.student.named_modules() if isinstance(m, FakeQuantizer)}
        self.labels.append({name: q.format.label for name, q in quantizers.items()})

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == len(self.steps):
            self.on_train_start(trainer, pl_module)


def test_the_average_is_the_students_in_the_end(fit: Any) -> None:
    seen = Weights()
    module, _ = fit([seen, EMA(decay=0.8, start=0.4, every=2)], steps=8, accumulate=2, learning_rate=1e-2)
    expected = dict(seen.steps[4])  # ceil(0.4 * 8)
    for step in (6, 8):
        expected = {name: 0.8 * mean + 0.2 * seen.steps[step][name] for name, mean in expected.items()}
    for name, parameter in module.student.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-5, atol=1e-7)


def test_an_average_that_is_only_kept(fit: Any) -> None:
    seen, average = Weights(), EMA(use=False)
    module, _ = fit([seen, average], steps=4)
    assert all(torch.equal(p, seen.steps[-1][name]) for name, p in module.student.named_parameters())
    assert set(average.state_dict()["average"]) == set(seen.steps[-1])


def test_frozen_weights_stay_and_then_move(fit: Any) -> None:
    seen = Weights()
    rules = [
        {"names": "*.embed_tokens", "until": 0.5},
        {"names": "re:model.layers.0..*", "start": 0.3},
        {"names": "*.norm"},
    ]
    fit([seen, Freeze(rules)], steps=6, accumulate=2, weight_decay=0.1)

    def moved(name: str) -> list[bool]:
        pairs = zip(seen.steps, seen.steps[1:], strict=False)
        return [not torch.equal(before[name], after[name]) for before, after in pairs]

    assert moved("model.embed_tokens.weight") == [False] * 3 + [True] * 3
    assert moved("model.layers.0.mlp.up_proj.weight") == [True] * 2 + [False] * 4
    assert moved("model.layers.0.input_layernorm.weight") == [True] * 2 + [False] * 4
    assert moved("model.layers.1.mlp.up_proj.weight") == [True] * 6
    assert moved("model.norm.weight") == [False] * 6


def test_learned_scales_freeze_with_their_weight(fit: Any) -> None:
    seen = Weights()
    fit([seen, Freeze([{"names": "*.up_proj"}])], steps=2, quant="w1p58_lsq")
    same = {n for n in seen.steps[0] if torch.equal(seen.steps[0][n], seen.steps[-1][n])}
    assert any(name.endswith("up_proj.weights.format.log_scale") for name in same)
    assert all("up_proj" in name for name in same)


def stages(first: float = 0.3, second: float = 0.6) -> dict[str, Stage]:
    return {
        "int4": Stage(first, Integer(4, GROUP)),
        "seq_2": Stage(second, StretchedElastic(4, GROUP, "mean")),
    }


@pytest.mark.parametrize("quant", ["w1p58", "w1p58_lsq", "mixed_1p88"])
def test_bits_go_down_to_the_plan(fit: Any, quant: str) -> None:
    seen = Weights()
    module, _ = fit([BitSchedule(stages()), seen], steps=10, accumulate=2, quant=quant)
    own = {n: m for n, m in module.student.named_modules() if isinstance(m, FakeQuantizer)}
    layer = "model.layers.2.mlp.down_proj.weights"
    plan = own[layer].format.label
    assert [labels[layer] for labels in seen.labels] == ["4"] * 3 + ["2"] * 3 + [plan] * 4
    assert {labels["model.embed_tokens.weights"] for labels in seen.labels} == {"4"}  # wide enough already
    assert {labels["model.norm.weights"] for labels in seen.labels} == {"16"}
    assert not [q for q in own.values() if "format" in q.__dict__]


def test_learned_scales_begin_where_the_latents_are(fit: Any) -> None:
    """When the plan takes over, its scales fit the weights of that moment and not those of the start."""
    seen = Weights()
    module, _ = fit([BitSchedule(stages(0.25, 0.5)), seen], steps=4, quant="w1p58_lsq", learning_rate=0.05)
    name = "model.layers.1.mlp.up_proj"
    latent = seen.steps[2][f"{name}.weight"]
    spec = module.student.get_submodule(name).weights.format
    fresh = LearnedScale(Ternary(spec.group, spec.base.factor, spec.base.scale), spec.lr_multiplier).bind(
        latent
    )
    after = seen.steps[3][f"{name}.weights.format.log_scale"]
    step = (
        10 * module.settings.learning_rate_factor(2, 4) * 0.05
    )  # Adam's first step moves by the rate itself
    assert (after - fresh.log_scale).abs().max() <= 1.01 * step
    first = seen.steps[0][f"{name}.weights.format.log_scale"]
    assert torch.equal(first, seen.steps[2][f"{name}.weights.format.log_scale"])  # untouched while it waits
    assert (after - first).abs().max() > 1.1 * step  # which it could not have reached from the start


def test_wide_stages_learn_from_wide_codes(fit: Any) -> None:
    """A stage's formats are what is computed with: the first loss is that of a 4-bit student."""
    _, four = fit([], steps=3, quant="w4")
    _, staged = fit([BitSchedule({"int4": Stage(0.5, Integer(4, GROUP))})], steps=3, quant="w1p58")
    _, ternary = fit([], steps=3, quant="w1p58")
    assert staged[0]["loss/total"] == pytest.approx(four[0]["loss/total"])
    assert staged[0]["loss/total"] < 0.8 * ternary[0]["loss/total"]


def test_stages_that_make_no_sense(tiny_student: Callable[..., Any]) -> None:
    from razor.train.callbacks import RunFacts

    def problem(
        made: dict[str, Stage], quant: str = "w1p58", steps: int | None = 20, processes: int = 1
    ) -> str:
        with pytest.raises(RazorError) as error:
            BitSchedule(made).check(RunFacts(tiny_student(quant)[0], True, steps, [], processes))
        return str(error.value)

    assert "no weight of the plan has fewer bits than 2" in problem(
        {"a": Stage(0.5, StretchedElastic(4, GROUP))}, "w4"
    )
    assert "'b' is not narrower than 'a'" in problem(
        {"a": Stage(0.2, Integer(2, GROUP)), "b": Stage(0.5, Integer(4, GROUP))}
    )
    assert "2 steps are too few for 2 stages" in problem(stages(), steps=2)
    assert "something of its own" in problem({"a": Stage(0.5, LearnedScale(Integer(4, GROUP)))})
    assert "something of its own" in problem(
        {"a": Stage(0.5, RowMix(Integer(4, GROUP), Integer(3, GROUP), 0.5, "error"))}
    )
    assert "Group 60 does not divide" in problem({"a": Stage(0.5, Integer(4, 60))})
    assert "learned scales" in problem(stages(), "w1p58_lsq", processes=2)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: BitSchedule({}), "stages is empty"),
        (lambda: BitSchedule({"a": Stage(1.0, Integer(4, GROUP))}), "last stage has to be the run's plan"),
        (lambda: BitSchedule(stages(0.6, 0.3)), "seq_2.until=0.3 must come after 0.6"),
        (lambda: EMA(decay=1.0), r"ema\.decay='1.0' must lie between 0 and 1"),
        (lambda: EMA(start=-1), r"ema\.start='-1' must be a part of the run"),
        (lambda: Freeze([]), "must be a list of rules"),
        (lambda: Freeze([{"until": 0.2}]), "must be a rule, as"),
        (lambda: Freeze([{"names": "a", "until": 2.0}]), r"freeze\.rules\[0\]\.until='2.0'"),
        (lambda: Freeze([{"names": "a", "til": 0.2}]), "has no key 'til'"),
        (lambda: Freeze([{"names": "a", "start": 0.5, "until": 0.2}]), "start must come first"),
    ],
)
def test_bad_arguments(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(RazorError, match=text):
        make()


@pytest.mark.parametrize("quant", ["mixed_1p88", "w1p58_lsq"])
def test_checked_before_anything_is_loaded(quant: str) -> None:
    """From shapes alone, every callback that ships, on the meta device."""
    from razor import cli
    from razor.train.callbacks import check_callbacks

    names = "[default,held_out,early_stop,best,bits,freeze]"
    config = cli.composed("train", ["model=tiny_llama", f"quant={quant}", f"callbacks={names}"])
    skeleton = cli.model_source(config).skeleton()
    plan, callbacks = cli.build(config.quant).plan(skeleton), cli.build(config.callbacks)
    check_callbacks(callbacks, skeleton, plan, True, None)
    assert not any(isinstance(module, FakeQuantizer) for module in skeleton.modules())
    with pytest.raises(RazorError, match="metric=kl compares with a teacher"):
        check_callbacks(callbacks, skeleton, plan, False, None)
    with pytest.raises(RazorError, match="1 steps are too few"):
        check_callbacks(callbacks, skeleton, plan, True, 1)
