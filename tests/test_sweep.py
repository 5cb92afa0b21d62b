"""Sweeps: jobs that cannot spoil each other, the list at the end, and the same command given again."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from razor.cli import sweep
from razor.cli.standing import FAILED, NEW, clear, note_failure, standing
from razor.errors import RazorError

HERE = "hydra.callbacks.sweep.own_process=false"  # in this process, where a test can reach in


def needs(plugin: str) -> None:
    if importlib.util.find_spec(f"hydra_plugins.{plugin}") is None:
        pytest.skip(f"{plugin} is not installed")


def swept(main_job: Any, *words: str, own_process: bool = False) -> Any:
    """A sweep in `main_job.home`."""
    given = [*main_job.words(*words), f"hydra.sweep.dir={main_job.home}"]
    return main_job.command("-m", *given, *([] if own_process else [HERE]), folder=main_job.home)


def listed(out: str) -> dict[str, str]:
    """The list at the end: folder name -> state."""
    lines = re.findall(r"^(finished|skipped|stopped|failed) +(\S+?):?(?: |$)", out, re.MULTILINE)
    return {Path(folder).name: state for state, folder in lines}


def failure_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "failure.json").read_text())


def test_failures_stop_nobody_and_the_same_command_goes_on(main_job: Any) -> None:
    from razor.train.finish import save_packed

    def broken(student: Any, plan: Any, *rest: Any) -> None:
        if "1_" in str(rest[2]):  # the folder
            raise ZeroDivisionError("a bug of ours")
        save_packed(student, plan, *rest)

    with main_job.monkeypatch.context() as patch:
        patch.setattr("razor.train.finish.save_packed", lambda *given: broken(*given))
        patch.setattr("razor.data.corpus.Corpus.build", refuse_second(patch))
        first = swept(main_job, "quant=w4,mixed_2p79,w1p58", "trainer.learning_rate=0.001")
    assert first.code == 2 and "Traceback" in first.err
    assert listed(first.out) == {
        "0_tiny_llama_w4": "finished",
        "1_tiny_llama_mixed_2p79": "failed",
        "2_tiny_llama_w1p58": "failed",
    }
    bug, bad = (
        failure_of(main_job.home / name) for name in ("1_tiny_llama_mixed_2p79", "2_tiny_llama_w1p58")
    )
    assert bug["error"] == "ZeroDivisionError" and "a bug of ours" in bug["reason"]
    assert "save_packed" in Path(bug["traceback"]).read_text()
    assert bad["reason"] == "no such text" and bad["traceback"] is None
    assert "a bug of ours" in first.out and f"razor compare dirs=[{main_job.home}]" in first.out

    line = next(line for line in first.out.splitlines() if line.startswith("resume "))
    command = shlex.split(line)[3:]
    report = main_job.home / "0_tiny_llama_w4" / "report.json"
    before = report.stat().st_mtime_ns
    main_job.monkeypatch.setattr(
        "razor.train.module.DistillModule.training_step", only_of_the_third(main_job)
    )
    second = main_job.command(*command, folder=main_job.home)
    assert second.code == 0, second.err
    assert listed(second.out) == {
        "0_tiny_llama_w4": "skipped",
        "1_tiny_llama_mixed_2p79": "finished",  # went on from its last checkpoint: nothing left to train
        "2_tiny_llama_w1p58": "finished",
    }
    assert report.stat().st_mtime_ns == before
    assert not list(main_job.home.rglob("failure.json")) and not list(main_job.home.rglob("traceback.txt"))
    assert "resume " not in second.out


def refuse_second(patch: Any) -> Callable[..., Any]:
    """`Corpus.build`, which finds no text in the third job."""
    from razor.data.corpus import Corpus

    honest, calls = Corpus.build, []

    def build(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise RazorError("no such text")
        return honest(*args, **options)

    return build


def only_of_the_third(main_job: Any) -> Callable[..., Any]:
    """A training step that the second job must not take again."""
    from razor.train.module import DistillModule

    honest = DistillModule.training_step

    def training_step(self: Any, *args: Any) -> Any:
        assert "1_tiny" not in str(self.trainer.default_root_dir)
        return honest(self, *args)

    return training_step


@pytest.mark.slow
def test_jobs_do_not_see_each_other(main_job: Any) -> None:
    """Each job of a sweep comes to the numbers of the same job alone."""
    done = swept(main_job, "quant=w4,w1p58", "trainer.max_steps=2")
    assert done.code == 0, done.err
    alone = main_job("quant=w1p58", "trainer.max_steps=2")
    rows = [
        json.loads((folder / "report.json").read_text())["rows"]
        for folder in (main_job.home / "1_tiny_llama_w1p58", alone.folder)
    ]
    assert rows[0] == rows[1]


def test_another_config_is_refused(main_job: Any) -> None:
    folder = main_job.folder()
    first = main_job("trainer.max_steps=1", folder=folder)
    assert first.code == 0
    content = (folder / "report.json").read_text()
    problem = main_job("trainer.max_steps=2", "seed=3", folder=folder).problem
    for part in (
        str(folder.name),
        "another config",
        "seed (0 there, 3 here)",
        "trainer.max_steps (1 there, 2 here)",
    ):
        assert part in problem
    assert (folder / "report.json").read_text() == content
    again = main_job("trainer.max_steps=1", folder=folder)
    assert again.code == 0 and "nothing to do" in again.out and not (folder / "failure.json").exists()


def test_the_same_command_continues_a_single_run(main_job: Any) -> None:
    words, folder = ("trainer.max_steps=6", "trainer.checkpoint_every=2"), main_job.folder()
    with main_job.monkeypatch.context() as patch:
        patch.setattr("razor.train.finish.save_packed", None)
        with pytest.raises(TypeError):
            main_job(*words, folder=folder)
    assert failure_of(folder)["error"] == "TypeError"
    again = main_job(*words, folder=folder)
    assert again.code == 0 and "Continuing from" in again.out
    assert (folder / "report.json").is_file() and not (folder / "failure.json").exists()


def test_standing_of_a_run_that_came_to_nothing(tmp_path: Path) -> None:
    """Bad input found after the config was written: the corrected command may have the folder."""
    config = OmegaConf.create({"model": {}, "quant": {}, "data": {}, "trainer": {"steps": 1}})
    assert standing(tmp_path, config) == NEW
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(config))
    other = OmegaConf.merge(config, {"trainer": {"steps": 2}})
    with pytest.raises(RazorError, match=r"trainer.steps \(1 there, 2 here\)"):
        standing(tmp_path, other)
    note_failure(tmp_path, "RazorError", "no")
    assert standing(tmp_path, other) == FAILED
    (tmp_path / "scores").mkdir()
    clear(tmp_path, FAILED)
    assert list(tmp_path.iterdir()) == []
    for kept in ("checkpoints", "report.json"):
        (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(config))
        note_failure(tmp_path, "RazorError", "no")
        (tmp_path / kept).mkdir() if kept == "checkpoints" else (tmp_path / kept).write_text("{}")
        with pytest.raises(RazorError, match="another config"):
            standing(tmp_path, other)
        (tmp_path / kept).rmdir() if kept == "checkpoints" else (tmp_path / kept).unlink()


def test_keys_of_the_command_are_not_compared(tmp_path: Path) -> None:
    config = OmegaConf.create(
        {"model": {}, "quant": {}, "data": {}, "trainer": {}, "debug": False, "run": None}
    )
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(config))
    assert standing(tmp_path, OmegaConf.merge(config, {"debug": True})) == "begun"


@pytest.mark.parametrize("word", sweep.PLUGINS)
def test_a_missing_plugin_is_said(main_job: Any, word: str) -> None:
    honest = importlib.util.find_spec
    main_job.monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: None if name.startswith("hydra_plugins.hydra_") else honest(name, *rest),
    )
    problem = main_job.command("-m", word, folder=main_job.home).problem
    assert word in problem and "pip install 'razor-qad[sweeps]'" in problem


def test_a_wrong_objective_is_said(main_job: Any) -> None:
    words = main_job.words("hydra.callbacks.sweep.objective=averag")
    problem = main_job.command("-m", *words, f"hydra.sweep.dir={main_job.home}", folder=main_job.home).problem
    assert "objective='averag'" in problem and "Did you mean 'average'?" in problem


@pytest.mark.slow
def test_optuna_makes_kl_small_and_can_be_resumed(main_job: Any) -> None:
    needs("hydra_optuna_sweeper")
    words = (
        "quant=w4",
        "trainer.max_steps=1",
        "logger=none",
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=3",
        "hydra.sweeper.n_jobs=1",
        "trainer.learning_rate=choice(0.0001,-1,0.01)",
    )
    first = swept(main_job, *words)
    states = list(listed(first.out).values())
    assert len(states) == 3
    found = yaml.safe_load((main_job.home / "optimization_results.yaml").read_text())
    kls = {}
    for folder in (path.parent for path in main_job.home.rglob("report.json")):
        report = json.loads((folder / "report.json").read_text())
        kls[report["config"]["trainer"]["learning_rate"]] = report["rows"][2]["kl"]
    assert found["best_value"] == min(kls.values())
    assert kls[found["best_params"]["trainer.learning_rate"]] == found["best_value"]
    again = swept(main_job, *words)
    assert yaml.safe_load((main_job.home / "optimization_results.yaml").read_text()) == found
    assert set(listed(again.out).values()) <= {"skipped", "failed"}
    assert first.code == again.code == (2 if "failed" in states else 0)


def test_optuna_settings_give_way_to_the_command() -> None:
    config = OmegaConf.create(
        {
            "hydra": {
                "sweep": {"dir": "nowhere"},
                "sweeper": {"sampler": {"seed": None}, "direction": "minimize", "max_failure_rate": 0.0},
                "runtime": {"choices": {"hydra/sweeper": "optuna"}},
                "overrides": {"hydra": ["hydra/sweeper=optuna", "hydra.sweeper.max_failure_rate=0.5"]},
            }
        }
    )
    config.hydra.sweeper.max_failure_rate = 0.5
    sweep.Sweep("average").on_multirun_start(config)
    assert OmegaConf.to_container(config.hydra.sweeper) == {
        "sampler": {"seed": 0},
        "direction": "maximize",
        "max_failure_rate": 0.5,
    }


def test_the_average_needs_benchmarks(main_job: Any) -> None:
    needs("hydra_optuna_sweeper")
    done = swept(
        main_job,
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=1",
        "hydra.callbacks.sweep.objective=average",
        "trainer.learning_rate=choice(0.001,0.002)",
    )
    assert done.code == 2 and listed(done.out) == {"0_tiny_llama_mixed_2p79": "failed"}
    assert "needs benchmarks" in done.out


def wait_for(condition: Callable[[], Any], seconds: float = 900) -> Any:
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.02)
    return found


def processes_in(folder: Path) -> list[int]:
    """Processes whose command line names a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if str(folder) in words:
            found.append(int(path.name))
    return found


LONG = ("trainer.max_steps=400", "trainer.checkpoint_every=5", "logger=none")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_a_killed_job_stops_nobody(main_job: Any, launcher: str) -> None:
    """Jobs in processes of their own: one dies by SIGKILL, the sweep goes on, and goes on with it when told to."""
    if launcher != "basic":
        needs({"joblib": "hydra_joblib_launcher", "submitit_local": "hydra_submitit_launcher"}[launcher])
    home = (
        main_job.home.relative_to(Path.cwd()) if main_job.home.is_relative_to(Path.cwd()) else main_job.home
    )
    words = [
        *main_job.words("quant=w4,w1p58", *LONG, "trainer.max_steps=60"),
        f"hydra.sweep.dir={home}",
        f"hydra/launcher={launcher}",
        *(["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []),
    ]
    process = main_job.start("-m", *words)
    victim = main_job.home / "0_tiny_llama_w4"
    wait_for((victim / "checkpoints" / "last.ckpt").is_file)
    for number in wait_for(lambda: processes_in(Path(os.path.relpath(victim)))):
        os.kill(number, signal.SIGKILL)
    out, err = process.communicate(timeout=1200)
    assert process.returncode == 2, out + err
    assert listed(out) == {"0_tiny_llama_w4": "failed", "1_tiny_llama_w1p58": "finished"}
    assert failure_of(victim)["error"] == "SIGKILL" and "out of memory?" in out
    assert (victim / "output.log").is_file() == (launcher != "basic")
    process = main_job.start("-m", *words)
    out, err = process.communicate(timeout=1200)
    assert process.returncode == 0, out + err
    assert listed(out) == {"0_tiny_llama_w4": "finished", "1_tiny_llama_w1p58": "skipped"}
    said = (victim / "output.log").read_text() if launcher != "basic" else out
    assert "Continuing from" in said


@pytest.mark.slow
def test_ctrl_c_saves_the_job_and_ends_the_sweep(main_job: Any) -> None:
    words = [*main_job.words("quant=w4,w1p58", *LONG), f"hydra.sweep.dir={main_job.home}"]
    process = main_job.start("-m", *words)
    folder = main_job.home / "0_tiny_llama_w4"
    wait_for((folder / "checkpoints" / "last.ckpt").is_file)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=1200)
    assert process.returncode == 130, err
    assert "Stopping after this step" in out and "Traceback" not in err
    assert listed(out) == {"0_tiny_llama_w4": "stopped"} and "had not begun" in out and "resume " in out
    assert not (folder / "failure.json").exists() and not (main_job.home / "1_tiny_llama_w1p58").exists()


@pytest.mark.slow
def test_a_job_does_not_outlive_its_sweep(main_job: Any) -> None:
    """The sweep itself is killed: its job saves and stops, so that nobody else writes into the folder."""
    words = [*main_job.words("quant=w4,w1p58", *LONG), f"hydra.sweep.dir={main_job.home}"]
    process = main_job.start("-m", *words)
    folder = main_job.home / "0_tiny_llama_w4"
    wait_for((folder / "checkpoints" / "last.ckpt").is_file)
    assert processes_in(Path(os.path.relpath(folder)))
    process.kill()
    process.wait()
    wait_for(lambda: not processes_in(Path(os.path.relpath(folder))), 60)
    assert not (folder / "report.json").exists()
