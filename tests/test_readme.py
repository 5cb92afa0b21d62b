"""Every command that the README and the documents show works: run here on a tiny model, or looked at closely.

A line of a ```bash block has to be of a kind that is known here, so a new kind of command needs a new function.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from razor import cli

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BLOCK = re.compile(r"^```(?:bash|sh|shell|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)

# what makes a main job tiny; keys that would make it long or need a hub are dropped
TINY = {
    "model": "tiny_qwen3",
    "evals": "none",
    "data.source.tokens": "2000",
    "data.held_out": "4",
    "data.sequence_length": "128",
    "trainer": "cpu",
    "trainer.max_steps": "2",
    "logger": "none",
}
TINY_IMAGES = {
    "model": "tiny_vit",
    "model.weights": "random",
    "data": "digits",
    "evals": "classification",
    "data.rows_per_batch": "8",
    "data.held_out": "32",
    "trainer": "cpu",
    "trainer.max_steps": "1",
    "logger": "none",
}
TINY_MEDIA = {
    "model": "tiny_omni",
    "data.source.questions": "12",
    "data.source.size": "16",
    "data.source.seconds": "0.2",
    "data.rows_per_batch": "2",
    "data.held_out": "2",
    "trainer": "cpu",
    "trainer.compute_dtype": "float32",
    "trainer.max_steps": "1",
    "logger": "none",
}
DROPPED = {"trainer.max_minutes", "trainer.accelerator", "experiment"}
REPLACED = ("model.", "evals.", "logger.")


def commands_of(document: Path) -> list[str]:
    """Shell commands of a document's fenced blocks: continued lines joined, comments and prompts removed."""
    text = document.read_text(encoding="utf-8") if document.is_file() else ""
    lines = [line for block in BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    cleaned = [shlex.join(shlex.split(line.removeprefix("$ "), comments=True)) for line in lines]
    return [line for line in cleaned if line]


DOCUMENTS = [README, *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = list(dict.fromkeys(command for document in DOCUMENTS for command in commands_of(document)))


@dataclass
class Place:
    """Where commands are run: what a tiny job needs, and a finished run to stand for RUN and FOLDER."""

    main_job: Any
    razor: Callable[..., Any]
    run: Path
    tmp: Path

    def run_copy(self) -> Path:
        folder = self.tmp / "run"
        if not folder.exists():
            shutil.copytree(self.run, folder)
        return folder

    def image_run(self) -> Path:
        """A finished run of a classifier."""
        words, folder = [f"{key}={value}" for key, value in TINY_IMAGES.items()], self.tmp / "images"
        experiment = "experiment=vision/resnet18_mixed_2p79"
        done = self.main_job.command(experiment, *words, f"hydra.run.dir={folder}", folder=folder)
        assert done.code == 0, done.err
        return folder

    def data_file(self, name: str) -> Path:
        """Stands for a reader's own data: `name` says which kind it is."""
        path = self.tmp / ("own.jsonl" if name.endswith((".jsonl", ".json")) else "own.txt")
        pairs = [json.dumps({"prompt": f"{n} and {n}?", "response": f"{n + n}."}) for n in range(60)]
        texts = [f"{n} and {n} are {n + n}." for n in range(600)]
        path.write_text("\n".join(pairs if path.suffix == ".jsonl" else texts))
        return path

    def own_files(self, given: dict[str, str], model: str) -> dict[str, str]:
        """The words of a command with the files that a reader would have: a recipe, a plan of the model."""
        files = dict(given)
        if "recipe" in given:
            files["recipe"] = str(self.run / "recipe.yaml")
        if "quant.plan" in given:
            made = self.razor("plan", f"model={model}", f"out={self.tmp / 'plan'}")
            assert made.code == 0, made.err
            files["quant.plan"] = str(self.tmp / "plan" / "plan.yaml")
        if "out" in given:
            files["out"] = str(self.tmp / given["out"])
        if "dirs" in given:
            files["dirs"] = str(self.run)
        if "data.source.prompts" in given:
            files["data.source.prompts"] = str(self.data_file("prompts.txt"))
        if "teacher_targets" in given:
            files["teacher_targets"] = str(self.tmp / given["teacher_targets"])
        return files

    def cached(self, words: list[str]) -> None:
        """What a job that reads the teacher's cached targets has to find."""
        given = dict(word.partition("=")[::2] for word in words)
        if given.get("teacher") == "cached":
            out = given.pop("teacher_targets", None)
            kept = [f"{key}={value}" for key, value in given.items()]
            made = self.razor("cache_teacher", *kept, *([] if out is None else [f"out={out}"]))
            assert made.code == 0, made.err


@pytest.fixture
def place(main_job: Any, razor: Any, finished_run: Any, tmp_path: Path) -> Place:
    assert finished_run.code == 0, finished_run.err
    return Place(main_job, razor, finished_run.folder, tmp_path)


def made_tiny(words: list[str], place: Place) -> list[str]:
    """The overrides of a main job with what is long or far away replaced."""
    given = dict(word.partition("=")[::2] for word in words)
    kept = {key: value for key, value in given.items() if key not in DROPPED and not key.startswith(REPLACED)}
    if given.get("data", "").startswith(("hub", "paper")):
        kept = {key: value for key, value in kept.items() if not key.startswith("data")}
    if given.get("experiment", "").startswith("vision/"):
        return [f"{key}={value}" for key, value in (kept | TINY_IMAGES).items()]
    if given.get("experiment", "").startswith("media/"):
        own = {
            key: value
            for key, value in given.items()
            if key in ("experiment", "model", "distill.weights.audio")
        }
        seconds = {key: given[key] for key in ("data.source.seconds",) if key in given}
        return [f"{key}={value}" for key, value in (TINY_MEDIA | own | seconds).items()]
    tiny = dict(TINY)
    if given.get("trainer") in ("ddp", "fsdp2"):
        tiny |= {"trainer": given["trainer"], "trainer.accelerator": "cpu", "trainer.devices": "2"}
    if "bits" in given.get("callbacks", ""):
        tiny["trainer.max_steps"] = "4"  # a step for every stage
    if paths := [key for key in kept if key.startswith("data.") and key.endswith("source.path")]:
        kept |= {key: str(place.data_file(given[key])) for key in paths}
        del tiny["data.source.tokens"]
    kept = place.own_files(kept, TINY["model"])
    if "data.source.mix" in kept:  # the tiny models have no chat template
        kept["data.source.mix"] = kept["data.source.mix"].replace("chat: 0.7, ", "")
    for key in {"teacher", "teacher_cache.teacher"} & set(kept):
        if kept[key] not in ("same", "cached"):
            kept[key] = "tiny_llama"
    return [f"{key}={value}" for key, value in (kept | tiny).items()]


def small_sweep(word: str) -> str:
    """Two widths, and the first of everything else."""
    key, _, value = word.partition("=")
    if "[" in value or "(" in value:
        return word
    values = value.split(",")
    return f"{key}={','.join(values[: 2 if key == 'quant' else 1])}"


def main_job(words: list[str], place: Place) -> None:
    """python train.py ..."""
    given = dict(word.partition("=")[::2] for word in words)
    if "run" in given:
        folder = place.run_copy()
        shutil.rmtree(folder / "packed")
        where = [word.replace("=4", "=1") for word in words if word.startswith("trainer.")]
        done = place.main_job.resume(folder, *where)
        assert done.code == 0 and (folder / "packed" / "razor.json").is_file(), done.err
        return
    sweep = [word for word in words if word in ("-m", "--multirun")]
    overrides = [word for word in words if word not in sweep]
    if not sweep:
        cli.composed("train", overrides)  # as it stands, every key and option of it exists
    if (
        "data.source.engine=llama_cpp" in overrides
    ):  # wants a GGUF of the very model; tests/data/test_llama_cpp.py looks closer
        return
    if "hydra/launcher=submitit_slurm" in overrides:  # wants a cluster; the local one is tried
        return
    if "trainer=deepspeed_zero2" in overrides:  # wants a GPU
        return
    tiny = made_tiny([small_sweep(word) for word in overrides] if sweep else overrides, place)
    place.cached(tiny)
    trials = 2 if "hydra/sweeper=optuna" in tiny else None
    if trials:
        tiny.append(f"hydra.sweeper.n_trials={trials}")
    done = place.main_job.command(
        *sweep,
        *tiny,
        "hydra.callbacks.sweep.own_process=false",  # spares the start of Python; see tests/test_sweep.py
        f"hydra.run.dir={place.tmp / 'job'}",
        f"hydra.sweep.dir={place.tmp / 'job'}",
        folder=place.tmp / "job",
    )
    assert done.code == 0, done.err
    jobs = 1
    for word in tiny if sweep and not trials else []:
        jobs *= len(re.sub(r"\[.*?\]", "", word).split(","))
    assert len(list((place.tmp / "job").rglob("report.json"))) == (trials or jobs)


def verb(words: list[str], place: Place) -> None:
    """razor ..."""
    if words[0].replace("-", "_") == "cache_teacher":
        cli.composed("cache_teacher", words[1:])
        words = [words[0], *made_tiny(words[1:], place)]
    if words[0] in ("evaluate", "allocate"):
        {"evaluate": evaluation, "allocate": allocation}[words[0]](words[1:], place)
        return
    if words[0] in ("playground", "serve"):  # which would not come back; tests/serve starts them
        cli.composed(words[0], words[1:])
        return
    options = dict(word.partition("=")[::2] for word in words[1:])
    if words[0] == "push":
        made = place.razor("export", f"run={place.run}", "export=packed", f"out={place.tmp / 'exports'}")
        assert made.code == 0, made.err
        options |= {"folder": str(place.tmp / "exports"), "dry_run": "true"}
    if words[0] == "compare":  # where a reader has runs/
        options.setdefault("dirs", "runs")
    model = TINY["model"] if words[0] == "quantize" else options.get("model", "smollm2_135m")
    options = place.own_files(options, model)
    run = place.run
    if words[0] == "export":  # into a run of its own, for `razor chat` opens what lies in the shared one
        run = place.image_run() if options.get("export") == "onnx" else place.run_copy()
    given = [words[0], *(f"{key}={run if key == 'run' else value}" for key, value in options.items())]
    if words[0] == "quantize" or options.get("quant", "").startswith("auto"):
        given = [word for word in given if not word.startswith("model=")] + [f"model={TINY['model']}"]
    if words[0] == "rerun" and "out" not in options:
        given.append(f"out={place.tmp / 'again'}")
    if words[0] == "chat":
        given += ["max_new_tokens=4"] + ([] if "prompt=" in " ".join(words) else ["prompt=Hello"])
    done = place.razor(*given)
    assert done.code == 0 and done.out, done.err
    if "json=true" in words:
        json.loads(done.out)


def allocation(words: list[str], place: Place) -> None:
    """razor allocate ...: every key and option exists; a plan is found for a tiny model, whose sizes are others."""
    cli.composed("allocate", words)
    given = dict(word.partition("=")[::2] for word in words)
    for key in ("budget", "unit", "fits"):
        given.pop(key, None)
    tiny = {key: value for key, value in TINY.items() if key == "model" or key.startswith("data.")}
    given |= tiny | {"trainer": "cpu", "out": str(place.tmp / "found")}
    if "scores" in given:
        given["scores"] = str(place.tmp / "scores")
        before = {key: value for key, value in given.items() if key not in ("scores", "json")}
        made = place.razor("allocate", *(f"{k}={v}" for k, v in (before | {"out": given["scores"]}).items()))
        assert made.code == 0, made.err
    done = place.razor("allocate", *(f"{key}={value}" for key, value in given.items()))
    assert done.code == 0 and (place.tmp / "found" / "plan.yaml").is_file(), done.err
    if given.get("json") == "true":
        json.loads(done.out)


def evaluation(words: list[str], place: Place) -> None:
    """razor evaluate ...: every key and option exists; models are scored, tiny ones on rows of our own."""
    from razor.cli.evaluate import leading
    from razor.evals.rows import ROWS_VERSION
    from tests.dist.test_scoring import stand_ins

    names, overrides = leading(words)
    composed = cli.composed("evaluate", overrides if names is None else ["target=given", *overrides])
    assert cli.build(composed.evals).tasks
    place.main_job.cache = place.tmp / "cache"
    stand_ins(place.main_job.cache / "rows" / ROWS_VERSION)
    kept = {
        word.partition("=")[0]: word for word in overrides if not word.startswith(("evals", "kv", "target"))
    }
    if "out" in kept:
        kept["out"] = f"out={place.tmp / 'scores'}"
    count = len(names) if names else 1
    targets = [str(place.run), *["tiny_llama", "tiny_qwen3", "tiny_llama"][: count - 1]]
    done = place.razor("evaluate", *targets, *kept.values(), "evals.tasks=[piqa,sciq]", "evals.limit=3")
    assert done.code == 0 and done.out, done.err
    if "json=true" in words:
        json.loads(done.out)


def make(words: list[str], place: Place) -> None:
    """make ...: the targets exist and what they would run can be written down."""
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def pip(words: list[str], place: Place) -> None:
    """pip install ...: the extras it names exist."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    known = set(
        re.findall(r"^([\w-]+) = \[", text.partition("[project.optional-dependencies]")[2], re.MULTILINE)
    )
    asked = {
        extra for word in words for found in re.findall(r"\[(.*?)\]", word) for extra in found.split(",")
    }
    assert words[0] == "install" and asked <= known


def torchrun(words: list[str], place: Place) -> None:
    """torchrun ... train.py ...: its own parser takes the options; tests/dist starts such runs."""
    from torch.distributed.run import get_args_parser

    options = get_args_parser().parse_args(words)
    assert options.training_script == "train.py"
    if not any(word.startswith("run=") for word in options.training_script_args):
        cli.composed("train", options.training_script_args)


def script(words: list[str], place: Place) -> None:
    """python FILE ...: the file is there and at least parses."""
    compile((ROOT / words[0]).read_text(encoding="utf-8"), words[0], "exec")


def nothing(words: list[str], place: Place) -> None:
    """cd, git clone, clients of what we serve and what cannot run here: nothing of ours to check."""


def handler(command: str) -> tuple[Callable[[list[str], Place], None], list[str]]:
    """Who checks a command, and the words that are left for it."""
    words = shlex.split(command)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # variables before a command
        words = words[1:]
    program, rest = Path(words[0]).name, words[1:]
    if re.fullmatch(r"python3?(\.\d+)?", program):
        if rest[:1] == ["train.py"]:
            return main_job, rest[1:]
        if rest[:2] == ["-m", "razor"]:
            return verb, rest[2:]
        if rest[:2] == ["-m", "pip"]:
            return pip, rest[2:]
        if rest[0].endswith(".py"):
            return script, rest
    kinds = {"razor": verb, "make": make, "pip": pip, "torchrun": torchrun}
    kinds |= dict.fromkeys(("cd", "source", ".", "curl", "docker", "llama-cli", "vllm"), nothing)
    if program in kinds:
        return kinds[program], rest
    if words[:2] == ["git", "clone"]:
        return nothing, rest
    raise AssertionError(f"no test knows how to try the command: {command}")


def test_the_readme_shows_the_main_commands() -> None:
    assert README.is_file(), "README.md is missing"
    shown = "\n".join(commands_of(README))
    for command in ("make run", "make test", "python train.py", "razor size", "razor chat", "ckpt=last"):
        assert command in shown


FIRST = commands_of(README)


@pytest.mark.parametrize(
    "command",
    # `make test` tries the README's, `make docs` all of them
    [pytest.param(c, marks=[] if c in FIRST else [pytest.mark.slow]) for c in COMMANDS],
)
def test_command(command: str, place: Place) -> None:
    check, words = handler(command)
    check(words, place)


def test_the_loop_of_the_readme_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Python, as it stands, on a tiny model."""
    import torch

    source = cli.model_source(cli.composed("size", ["model=tiny_llama"]))
    model, tokenizer = source.load(torch.bfloat16), source.tokenizer()
    before = model.lm_head.weight.detach().clone()
    rows = tokenizer(["some text", "and more of it"], padding=True, return_tensors="pt")
    batches = [{"labels": rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100), **rows}] * 3
    block = next(
        b for b in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "Distiller" in b
    )
    shutil.copy(ROOT / "docs" / "examples" / "recipe.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    names = {"model": model, "tokenizer": tokenizer, "batches": batches}
    exec(block, names)
    assert not torch.equal(names["student"].lm_head.weight, before)
    ids, trained = rows["input_ids"], names["student"].eval()
    with torch.no_grad():
        assert torch.equal(names["model"](ids).logits, trained(ids).logits)


def test_commands_are_found_as_a_shell_would(tmp_path: Path) -> None:
    document = tmp_path / "text.md"
    document.write_text(
        "```bash\n# only a comment\n$ make run  # why\n"
        "python train.py \\\n    quant=w4   data.source.path='a b'\n```\n"
        "```python\nprint(1)\n```\n"
    )
    assert commands_of(document) == ["make run", "python train.py quant=w4 'data.source.path=a b'"]
    with pytest.raises(AssertionError, match="no test knows"):
        handler("rm -rf /")


def test_the_console_script_is_the_module() -> None:
    script = Path(sys.executable).with_name("razor")
    if not script.is_file():
        pytest.skip("the package is not installed in this environment")
    done = subprocess.run([str(script)], capture_output=True, text=True)
    assert done.returncode == 0 and "size" in done.stdout
