"""A run with callbacks that was killed and resumed ends as one that never was, bit for bit."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

STEPS = ("trainer.max_steps=8", "trainer.checkpoint_every=3", "callbacks.code_flips.every=2")
MIXES = {
    "looking, averaging, freezing": (
        "callbacks=[default,ema,early_stop,freeze]",
        "callbacks.ema.start=0.2",
        "callbacks.held_out.every=2",
        "callbacks.freeze.rules=[{names:'*.embed_tokens',until:0.5},{names:'*.up_proj',start:0.5}]",
    ),
    "bits, the plan just beginning": (
        "callbacks=[default,bits,best]",
        "quant=w1p58_lsq",
        "callbacks.held_out.every=2",
        "callbacks.bits.stages.int4.until=0.25",
        "callbacks.bits.stages.seq_2.until=0.375",  # 3 of 8: where the checkpoint lies
    ),
    "bits, in a stage": (
        "callbacks=[default,bits,ema]",
        "quant=w1p58_lsq",
        "callbacks.bits.stages.int4.until=0.25",
        "callbacks.bits.stages.seq_2.until=0.75",
    ),
    "bits, rows chosen, the plan at work": (
        "callbacks=[default,bits]",
        "quant.weights.rows=error",
        "callbacks.bits.stages.int4.until=0.125",
        "~callbacks.bits.stages.seq_2",
    ),
}


class Killed(BaseException):
    """Ends a run at once, as SIGKILL would; nothing catches it."""


def killed_at_step_five(main_job: Any, *words: str) -> Path:
    from razor.train.module import DistillModule

    honest, folder = DistillModule.training_step, main_job.folder()

    def training_step(self: Any, batch: Any, index: int) -> Any:
        if self.trainer.global_step == 5:
            raise Killed
        return honest(self, batch, index)

    with main_job.monkeypatch.context() as patch:
        patch.setattr(DistillModule, "training_step", training_step)
        with pytest.raises(Killed):
            main_job(*words, folder=folder)
    return folder


def logged(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without what no two runs share."""
    own = ("tokens_per_second", "speed/", "memory/")
    with (folder / "logs" / "metrics.csv").open() as stream:
        return [{k: v for k, v in row.items() if not k.startswith(own)} for row in csv.DictReader(stream)]


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, torch.Tensor):
        return torch.equal(found, expected)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    return bool(found == expected)


@pytest.mark.parametrize(
    ("mix", "accumulate"),
    [
        pytest.param(mix, accumulate, marks=[] if number + accumulate == 2 else [pytest.mark.slow])
        for number, mix in enumerate(MIXES)
        for accumulate in (1, 2)
    ],
)
def test_killed_and_resumed_equals_uninterrupted(main_job: Any, mix: str, accumulate: int) -> None:
    words = (*STEPS, *MIXES[mix], f"trainer.accumulate={accumulate}")
    folder, reference = killed_at_step_five(main_job, *words), main_job(*words)
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3
    resumed = main_job.resume(folder)
    assert (resumed.code, reference.code) == (0, 0), resumed.err + reference.err
    assert logged(folder) == logged(reference.folder)
    states = [
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (folder, reference.folder)
    ]
    assert same(states[0]["state_dict"], states[1]["state_dict"])
    own = [{k: v for k, v in state["callbacks"].items() if "RandomStates" not in k} for state in states]
    assert same(own[0], own[1]) and own[0]
    packed = [(run / "packed" / "model.safetensors").read_bytes() for run in (folder, reference.folder)]
    assert packed[0] == packed[1]
    rows = [json.loads((run / "report.json").read_text())["rows"] for run in (folder, reference.folder)]
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_a_finished_run_with_an_average_is_packed_again_alike(main_job: Any) -> None:
    words = (*STEPS, "callbacks=[default,ema]", "callbacks.ema.decay=0.5", "trainer.learning_rate=0.01")
    done = main_job(*words)
    packed = done.folder / "packed" / "model.safetensors"
    before = packed.read_bytes()
    packed.unlink()
    assert main_job.resume(done.folder).code == 0
    assert packed.read_bytes() == before
    plain = main_job(*words, "callbacks=default", "-callbacks.ema.decay")
    assert plain.code == 0 and (plain.folder / "packed" / "model.safetensors").read_bytes() != before
