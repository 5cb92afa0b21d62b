"""`teacher=cached` in the main job: the same learning, no teacher in memory, and nothing stale."""

from __future__ import annotations

import csv
import gc
import json
import shlex
import weakref
from pathlib import Path
from typing import Any

import pytest

KLD = ("distill=kld", "trainer.max_steps=4", "trainer.checkpoint_every=2")
FULL = ("teacher_cache.kind=topk", "teacher_cache.k=272", "teacher_cache.values=float32")


def losses_of(folder: Path, name: str = "kld") -> list[float]:
    with (folder / "logs" / "metrics.csv").open() as stream:
        return [float(row[f"loss/{name}"]) for row in csv.DictReader(stream)]


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


class Own:
    """Main jobs on a text file, with a cache folder of their own."""

    def __init__(self, main_job: Any, razor: Any, text: Path) -> None:
        text.write_text("\n".join(f"{n} times {n} is {n * n}." for n in range(150)))
        main_job.cache = text.parent / "cache"
        self.main_job, self.razor = main_job, razor
        self.words = ("data=local_text", f"data.source.path={text}", "-data.source.tokens", *KLD)

    def cache(self, *words: str) -> dict[str, Any]:
        done = self.razor("cache_teacher", *self.main_job.words(*self.words, *words), "json=true")
        assert done.code == 0, done.err
        return json.loads(done.out)

    def train(self, *words: str, folder: Path | None = None) -> Any:
        return self.main_job(*self.words, "teacher=cached", *words, folder=folder)


@pytest.fixture
def own(main_job: Any, razor: Any, tmp_path: Path) -> Own:
    return Own(main_job, razor, tmp_path / "text.txt")


def test_full_targets_equal_the_teacher_itself(own: Own) -> None:
    """In fp32, to the rounding of sums in another order: 4 steps of AdamW, then the scores of the student."""
    words = ("trainer.compute_dtype=float32", *FULL)
    found = own.cache(*words)
    online, cached = own.main_job(*own.words, *words), own.train(*words)
    assert (online.code, cached.code) == (0, 0), online.err + cached.err
    first, second = losses_of(online.folder), losses_of(cached.folder)
    assert len(first) == 4 and first[-1] < first[0]
    assert second == pytest.approx(first, rel=2e-5)
    for one, other in zip(report_of(online.folder)["rows"], report_of(cached.folder)["rows"], strict=True):
        assert other["kl"] == pytest.approx(one["kl"], rel=1e-4, abs=1e-7)
        assert other["perplexity"] == pytest.approx(one["perplexity"], rel=1e-5)
    noted = report_of(cached.folder)
    assert noted["teacher_targets"]["kept"] == {"kind": "topk", "k": 272, "values": "float32"}
    assert noted["teacher_targets"]["folder"] == found["folder"]
    assert "teacher_targets" not in report_of(online.folder)
    assert (
        "cached: kind=topk k=272" in cached.out and "trained from the teacher's cached targets" in cached.out
    )
    assert "\nteacher  " not in online.out


@pytest.mark.slow
def test_sampled_targets_teach(own: Own) -> None:
    found = own.cache()
    assert (found["kind"], found["draws"]) == ("sampled", 50) and 9 + 3 < found[
        "bytes_per_token"
    ] < 9 + 150 + 5
    done = own.train()
    assert done.code == 0, done.err
    _, before, after = report_of(done.folder)["rows"]
    assert after["kl"] < before["kl"]


@pytest.mark.slow
def test_top_k_serves_entropy_aware_kl(own: Own) -> None:
    own.cache("teacher_cache.kind=topk")
    done = own.train("teacher_cache.kind=topk", "distill=eakld")
    assert done.code == 0, done.err
    online = own.main_job(*own.words, "distill=eakld")
    first, second = (losses_of(job.folder, "eakld") for job in (online, done))
    assert (
        0.3 * first[0] < second[0] < first[0]
    )  # a lower bound: 64 of 272 tokens that are all about as likely
    assert second[-1] < second[0]
    _, before, after = report_of(done.folder)["rows"]
    assert after["kl"] < before["kl"]


@pytest.mark.slow
def test_no_teacher_is_in_memory_while_training(own: Own) -> None:
    """It is loaded for scoring, before and after, and gone between: on the way only the student is alive."""
    from razor.models import RandomModel
    from razor.train.module import DistillModule

    own.cache()
    honest, load = DistillModule.training_step, RandomModel.load
    loaded: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def training_step(self: Any, batch: Any, index: int) -> Any:
        gc.collect()
        alive.append(sum(model() is not None for model in loaded))
        assert self.teacher is None and batch.targets is not None
        return honest(self, batch, index)

    def noted(self: Any, dtype: Any) -> Any:
        model = load(self, dtype)
        loaded.append(weakref.ref(model))
        return model

    patch = own.main_job.monkeypatch
    patch.setattr(RandomModel, "load", noted)
    patch.setattr(DistillModule, "training_step", training_step)
    done = own.train()
    assert done.code == 0, done.err
    assert len(loaded) == 3  # for the student's weights, to score before, to score after
    assert alive == [0] * 4
    again = own.main_job.resume(done.folder)
    assert again.code == 0 and len(loaded) == 4, again.err  # nothing is left to be scored


def command_of(problem: str) -> list[str]:
    """The words of the `razor cache_teacher` line in an error text."""
    line = problem[problem.index("razor cache_teacher ") :]
    return shlex.split(line)[1:]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (("seed=1",), "the training text"),
        (("data.held_out=5",), "the training text"),
        (("data.sequence_length=64",), "the training text"),
        (("model=tiny_qwen3",), "the teacher"),
        (("trainer.compute_dtype=float32",), "trainer.compute_dtype (there bfloat16, here float32)"),
        (
            ("teacher_cache.draws=9",),
            "what is kept (there kind=sampled draws=50 seed=0, here kind=sampled draws=9",
        ),
        (("teacher_cache.teacher=tiny_qwen3",), "the teacher"),
    ],
)
def test_what_is_stale_is_refused_with_the_line_that_helps(
    own: Own, changed: tuple[str, ...], words: str
) -> None:
    found = own.cache()
    problem = own.train(*changed).problem
    assert f"differ in {words}" in problem and found["folder"] in problem
    line = command_of(problem)
    assert (
        line[0] == "cache_teacher"
        and set(changed) <= set(line)
        and not {"distill=kld", "teacher=cached"} & set(line)
    )


@pytest.mark.parametrize("changed", ["seed=1", "teacher_cache.teacher=tiny_qwen3"])
def test_the_line_that_helps_helps(own: Own, changed: str) -> None:
    done = own.razor(*command_of(own.train(changed).problem))
    assert done.code == 0, done.err
    assert own.train(changed, "trainer.max_steps=1").code == 0


def test_nothing_there_is_said_before_the_text_is_written(own: Own, main_job: Any) -> None:
    main_job.monkeypatch.setattr("razor.train.teaching.Teaching.corpus", None)
    problem = own.train().problem
    assert "No teacher's targets lie in" in problem and command_of(problem)[0] == "cache_teacher"


@pytest.mark.parametrize("how", ["damaged", pytest.param("missing", marks=pytest.mark.slow)])
def test_a_run_that_goes_on_checks_again(own: Own, how: str) -> None:
    folder = Path(own.cache()["folder"])
    done = own.train()
    assert done.code == 0, done.err
    data = folder / "shard_00000.safetensors"
    if how == "damaged":
        data.write_bytes(data.read_bytes()[:-8] + bytes(8))
    else:
        data.with_suffix(".json").unlink()
    for job in (own.main_job.resume(done.folder), own.train()):
        assert (
            "checksum does not match" if how == "damaged" else "is incomplete: 1 of 1 shards"
        ) in job.problem
        assert str(folder) in job.problem
        assert own.razor(*command_of(job.problem)).code == 0
    assert own.main_job.resume(done.folder).code == 0


@pytest.mark.slow
def test_stopped_and_resumed_equals_uninterrupted(own: Own) -> None:
    from razor.train.module import DistillModule

    own.cache()
    honest, folder = DistillModule.training_step, own.main_job.folder()

    class Killed(BaseException):
        pass

    def dies(self: Any, batch: Any, index: int) -> Any:
        if self.trainer.global_step == 3:
            raise Killed
        return honest(self, batch, index)

    with own.main_job.monkeypatch.context() as patch:
        patch.setattr(DistillModule, "training_step", dies)
        with pytest.raises(Killed):
            own.train(folder=folder)
    resumed, whole = own.main_job.resume(folder), own.train()
    assert (resumed.code, whole.code) == (0, 0), resumed.err + whole.err
    assert losses_of(folder) == losses_of(whole.folder)
    weights = Path("packed") / "model.safetensors"
    assert (folder / weights).read_bytes() == (whole.folder / weights).read_bytes()


@pytest.mark.slow
def test_a_folder_of_ones_own(own: Own, tmp_path: Path) -> None:
    place = tmp_path / "targets"
    own.cache(f"out={place}")
    assert not (own.main_job.cache / "teacher_targets").exists()
    assert "No teacher's targets lie in" in own.train().problem
    done = own.train(f"teacher_targets={place}")
    assert done.code == 0, done.err
    problem = own.train(f"teacher_targets={place}", "seed=3").problem
    assert "the training text" in problem and f"out={place}" in problem
    assert "holds no teacher's targets" in own.train(f"teacher_targets={tmp_path}").problem
    problem = own.main_job(*own.words, f"teacher_targets={place}").problem
    assert "teacher_targets= is read by teacher=cached alone" in problem


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("distill=eakld_afd",), "'eakld' (EAKLD) needs more than sampled targets"),
        (("distill=rkld",), "'rkld' (ReverseKL) needs more than sampled targets"),
        (("distill=eakld_afd", "teacher_cache.kind=topk"), "'afd' looks inside the teacher"),
        (("distill=ce",), "none of the losses looks at a teacher"),
        (("teacher_cache.kind=all",), "kind=all. Choices: sampled, topk"),
        (("teacher_cache.kind=topk", "teacher_cache.k=273"), "k=273 is more than the 272 tokens"),
        (("teacher_cache.draws=0",), "draws=0 must be from 1"),
        (("distill.losses.kld.temperature=2",), "has temperature 2"),
    ],
)
def test_what_a_cache_cannot_do_is_refused_at_once(own: Own, words: tuple[str, ...], reason: str) -> None:
    own.main_job.monkeypatch.setattr("razor.train.teaching.Teaching.corpus", None)
    assert reason in own.train(*words).problem


def test_minutes_become_steps_without_a_teacher(own: Own) -> None:
    own.cache()
    patch = own.main_job.monkeypatch
    patch.setattr("razor.train.budget.OVERHEAD", 1e6)  # so that a minute is one step
    done = own.train("trainer.max_minutes=1")
    assert done.code == 0 and report_of(done.folder)["steps"] == 1, done.err
