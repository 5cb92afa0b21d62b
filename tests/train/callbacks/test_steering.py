"""Held-out scores while training, and what goes by them: stopping early, keeping the best."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from razor.errors import RazorError
from razor.train.callbacks import Best, EarlyStop, HeldOutScores

SHORT = ("trainer.max_steps=8", "trainer.checkpoint_every=3", "callbacks.held_out.every=2")


def scores_are(main_job: Any, *kls: float) -> None:
    """From now on held-out scores are these, one after the other."""
    left = iter(kls)
    main_job.monkeypatch.setattr(
        HeldOutScores,
        "score",
        staticmethod(lambda *_: {"kl": next(left), "cross_entropy": 9.0, "perplexity": 9.0}),
    )


def checkpoint(folder: Path, name: str = "last.ckpt") -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / name, weights_only=True)


def test_the_last_score_is_the_reports(main_job: Any, rows_of: Callable[[Path], Any]) -> None:
    done = main_job(*SHORT, "callbacks=[held_out]", "trainer.max_steps=5")
    assert done.code == 0, done.err
    rows = rows_of(done.folder)
    assert ["held_out/kl" in row for row in rows] == [False, True, False, True, True]
    after = json.loads((done.folder / "report.json").read_text())["rows"][-1]
    assert rows[-1]["held_out/kl"] == pytest.approx(after["kl"], rel=1e-6)
    assert rows[-1]["held_out/perplexity"] == pytest.approx(after["perplexity"], rel=1e-6)


def test_patience() -> None:
    trainer = SimpleNamespace(callbacks=[], max_steps=100, should_stop=False, is_global_zero=False)
    stop = EarlyStop(patience=2, min_delta=0.1)

    def say(kl: float, step: int) -> bool:
        stop.on_held_out(trainer, None, {"kl": kl}, step)  # type: ignore[arg-type]
        return trainer.should_stop

    assert [say(kl, step) for step, kl in enumerate([1.0, 0.95, 0.85, 0.8, 0.5, 0.45])] == [False] * 6
    assert say(0.41, 7) and stop.state_dict() == {"best": 0.5, "waited": 2, "stopped_at": 7}


def test_wide_stages_do_not_count() -> None:
    wide = SimpleNamespace(settled=False)
    trainer = SimpleNamespace(callbacks=[wide], max_steps=100, should_stop=False, is_global_zero=False)
    stop = EarlyStop(patience=1)
    for kl in (0.1, 0.2):
        stop.on_held_out(trainer, None, {"kl": kl}, 1)  # type: ignore[arg-type]
    assert stop.best is None and not trainer.should_stop


def test_a_run_that_stops_early_is_finished(main_job: Any) -> None:
    scores_are(main_job, 1.0, 2.0)
    done = main_job(*SHORT, "callbacks=[early_stop]", "callbacks.early_stop.patience=1")
    assert done.code == 0, done.err
    assert "Early stop after step 4: held-out kl 2 nats, best 1" in done.out
    report = json.loads((done.folder / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["teacher", "before", "after"] and report["steps"] == 4
    assert checkpoint(done.folder)["global_step"] == 4
    assert (done.folder / "packed" / "razor.json").is_file()


def test_a_run_that_stopped_early_trains_no_further(main_job: Any) -> None:
    class Killed(BaseException):
        """Ends a run at once."""

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    scores_are(main_job, 1.0, 2.0)
    folder = main_job.folder()
    with main_job.monkeypatch.context() as patch:
        patch.setattr("razor.train.finish.save_packed", die)
        with pytest.raises(Killed):
            main_job(*SHORT, "callbacks=[early_stop]", "callbacks.early_stop.patience=1", folder=folder)
    before = checkpoint(folder)["state_dict"]
    resumed = main_job.resume(folder)
    assert resumed.code == 0, resumed.err
    after = checkpoint(folder)
    assert after["global_step"] == 4 and all(
        torch.equal(after["state_dict"][n], w) for n, w in before.items()
    )
    assert json.loads((folder / "report.json").read_text())["rows"][-1]["name"] == "after"


@pytest.mark.parametrize("use", ["true", "false"])
def test_the_best_student_is_kept_and_used(main_job: Any, use: str) -> None:
    packed: list[dict[str, Any]] = []
    from razor.export.packed import save_packed

    def save(student: Any, *others: Any) -> None:
        packed.append({name: value.clone() for name, value in student.state_dict().items()})
        save_packed(student, *others)

    main_job.monkeypatch.setattr("razor.train.finish.save_packed", save)
    scores_are(main_job, 3.0, 1.0, 1.0, 2.0)
    done = main_job(*SHORT, "callbacks=[best]", f"callbacks.best.use={use}")
    assert done.code == 0, done.err
    kept = checkpoint(done.folder, "best.ckpt")
    assert kept["global_step"] == 4 and not kept.get("optimizer_states") and not kept.get("callbacks")
    last = checkpoint(done.folder)["state_dict"]
    chosen = kept["state_dict"] if use == "true" else last
    assert all(torch.equal(packed[0][name.removeprefix("student.")], w) for name, w in chosen.items())
    assert any(not torch.equal(last[name], w) for name, w in kept["state_dict"].items())
    assert ("The student is the best one, of step 4" in done.out) == (use == "true")


def test_without_a_teacher_cross_entropy_steers(main_job: Any, rows_of: Callable[[Path], Any]) -> None:
    words = (*SHORT, "callbacks=[early_stop,best]", "distill=ce")
    refused = main_job(*words)
    assert "callbacks.early_stop.metric=kl compares with a teacher" in refused.problem
    assert not (refused.folder / "scores").exists()  # before anything was done
    entropy = ("callbacks.early_stop.metric=cross_entropy", "callbacks.best.metric=cross_entropy")
    done = main_job(*words, *entropy)
    assert done.code == 0, done.err
    scored = [row for row in rows_of(done.folder) if "held_out/perplexity" in row]
    assert scored and "held_out/kl" not in scored[0]
    after = json.loads((done.folder / "report.json").read_text())["rows"][-1]
    assert min(row["held_out/perplexity"] for row in scored) == pytest.approx(after["perplexity"], rel=2e-4)


def test_what_cannot_be_is_said_first(main_job: Any) -> None:
    both = main_job("callbacks=[best,ema]")
    assert "both give the run its final student" in both.problem
    unheard = main_job("callbacks=[early_stop]", "~callbacks.held_out")
    assert "callbacks=[default,held_out,early_stop]" in unheard.problem
    nothing = main_job("callbacks=[freeze]", "callbacks.freeze.rules=[{names:'*.embed_tokns',until:0.2}]")
    assert "matches no module. Did you mean '*.embed_tokens'" in nothing.problem
    everything = main_job("callbacks=[freeze]", "callbacks.freeze.rules=[{names:'*',until:0.2}]")
    assert "freeze everything at 0 of the run" in everything.problem
    late = main_job("callbacks=[bits]", "callbacks.bits.stages.seq_2.until=1.0")
    assert "the last stage has to be the run's plan" in late.problem
    wider = main_job("callbacks=[bits]", "quant=w4", "trainer.max_steps=20")
    assert "would change nothing" in wider.problem
    assert not [path for run in main_job.home.iterdir() for path in run.glob("scores")]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: HeldOutScores(batches=0), r"held_out\.batches='0'"),
        (lambda: EarlyStop(patience=0), r"early_stop\.patience='0'"),
        (lambda: EarlyStop(min_delta=-1), r"early_stop\.min_delta='-1'"),
    ],
)
def test_bad_arguments(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(RazorError, match=text):
        make()


def test_an_unknown_metric(main_job: Any) -> None:
    assert (
        "callbacks.best.metric='bleu'. Choices: kl, cross_entropy."
        in main_job("callbacks=[best]", "callbacks.best.metric=bleu").problem
    )
    assert Best().state_dict() == {"best": None, "step": None}
