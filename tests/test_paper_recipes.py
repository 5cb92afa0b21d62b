"""The published recipes: every number against the paper and its scripts, and runs in their very shapes.

The numbers below are written down from EdgeRazor (arXiv 2605.04062) and the scripts published with it, not from
conf/experiment. The runs take random weights and two steps of very little text: they show that a recipe is a run,
not that it reproduces a score.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest

from razor import cli
from razor.data.sources import hub
from razor.data.sources.hub_benchmarks import FORMS
from razor.quant import measure

EXPERIMENTS = cli.conf_dir() / "experiment"
GPUS = 8


@dataclass(frozen=True)
class Published:
    """What a published run is: loss weights (task, EAKLD, AFD), steps, chats of a step, compression ratio."""

    weights: tuple[float, float, float]
    steps: int
    rows: int
    accumulate: int
    ratio: float


def epochs(number: int, chats: float, step: int) -> int:
    """Steps of whole epochs, whose last chats that fill no step are left out."""
    return number * int(chats // step)


INSTRUCT, BASE = 7.45e6 + 1.46e6 + 0.61e6 + 1.40e6 + 0.24e6, 1.48e6 + 0.24e6
QWEN_W4, QWEN = (0.05, 2.0, 0.5), (0.1, 2.0, 0.1)
WIDE, NARROW = (0.5, 2.0, 0.1), (0.2, 4.0, 1.0)  # MobileLLM at 4 and 2.79 bits, and below
PUBLISHED = {
    # ratios: the paper's table
    "qwen3_0p6b/w4": Published(QWEN_W4, 2000, 8, 16, 3.94),
    "qwen3_0p6b/mixed_2p79": Published(QWEN, epochs(1, INSTRUCT, 1024), 8, 16, 5.05),
    "qwen3_0p6b/mixed_1p88": Published(QWEN, epochs(1, INSTRUCT, 1024), 8, 16, 6.40),
    "qwen3_0p6b/w1p58": Published(QWEN, epochs(1, INSTRUCT, 1024), 8, 16, 7.03),
    # ratios: see `by_hand`
    "qwen3_1p7b/w4": Published(QWEN_W4, 2000, 12, 16, 3.94),
    "qwen3_1p7b/mixed_2p79": Published(QWEN, epochs(2, INSTRUCT, 1536), 12, 16, 5.21),
    "qwen3_1p7b/mixed_1p88": Published(QWEN, epochs(2, INSTRUCT, 1536), 12, 16, 6.87),
    "qwen3_1p7b/w1p58": Published(QWEN, epochs(2, INSTRUCT, 1536), 12, 16, 7.69),
    "mobilellm_350m/w4": Published(WIDE, epochs(2, BASE, 1920), 60, 4, 3.76),
    "mobilellm_350m/mixed_2p79": Published(WIDE, epochs(4, BASE, 1920), 60, 4, 4.94),
    "mobilellm_350m/mixed_1p88": Published(NARROW, epochs(5, BASE, 1920), 60, 4, 6.45),
    "mobilellm_350m/w1p58": Published(NARROW, epochs(5, BASE, 1920), 60, 4, 7.18),
}
SCHEDULES = {"qwen3": ("constant", 0.05), "mobilellm": ("cosine", 0.01)}
GROUPS = {"qwen3": (256, 128), "mobilellm": (64, 64)}  # of weights and activations, of keys and values
BITS = {"w4": 4.0, "mixed_2p79": 2.79, "mixed_1p88": 1.8825, "w1p58": 1.58}
EVERY = pytest.mark.parametrize("recipe", PUBLISHED)
OMNI = "qwen2p5_omni_7b/w4"
"""Published with settings of its own, at one width: `test_the_omni_recipe`."""


@pytest.fixture(autouse=True)
def eight_gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """Where nothing runs, the machine the recipes are for."""
    if "main_job" not in request.fixturenames:
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("torch.cuda.device_count", lambda: GPUS)
    yield


def test_every_model_has_every_width() -> None:
    found = {str(path.relative_to(EXPERIMENTS).with_suffix("")) for path in EXPERIMENTS.glob("*/*.yaml")}
    text = {name for name in found if name.partition("/")[0] not in ("paper", "vision", "media")}
    assert text - {OMNI} == set(PUBLISHED) and OMNI in text


@EVERY
def test_numbers_are_those_published(recipe: str) -> None:
    published, family = PUBLISHED[recipe], recipe.partition("_")[0]
    config = cli.composed("train", [f"experiment={recipe}"])
    assert f"{config.model.name}/{config.quant.name}" == recipe
    assert tuple(config.distill.weights[name] for name in ("task", "eakld", "afd")) == published.weights
    losses = config.distill.losses
    assert dict(losses.eakld, _target_=0) == {
        "_target_": 0, "k": 16, "cap": "batch", "gamma": "batch", "temperature": 1.0
    }  # fmt: skip
    assert (losses.afd.top, losses.afd.ranking, losses.afd.projection, losses.afd.relative) == (
        3, "cosine", "none", False
    )  # fmt: skip
    base = recipe.startswith("mobilellm")
    assert len(config.evals.tasks) == (13 if base else 14) and ("ifeval" in config.evals.tasks) != base

    settings = cli.build(config.trainer)
    assert (settings.processes, settings.on_gpu) == (GPUS, True)
    assert settings.micro_batches == GPUS * published.accumulate
    assert config.data.rows_per_batch == published.rows
    assert (config.data.sequence_length, config.data.pack, config.data.order) == (1024, False, "shuffled")
    assert settings.max_steps == published.steps
    assert (settings.learning_rate, settings.weight_decay, settings.clip) == (2e-5, 0.01, 1.0)
    assert tuple(settings.betas) == (0.9, 0.95)
    assert (settings.schedule, settings.warmup) == SCHEDULES[family]
    assert settings.gradient_checkpointing and settings.compute_dtype == "bfloat16"

    assert (config.model.group, config.model.kv_group) == GROUPS[family]
    skeleton = cli.model_source(config).skeleton()
    plan = cli.build(config.quant).plan(skeleton)
    total = measure(skeleton, plan).total
    assert total.ratio_paper == pytest.approx(published.ratio, abs=0.005)
    assert total.ratio_paper == pytest.approx(by_hand(config, BITS[recipe.partition("/")[2]]), rel=1e-3)

    sets_with(config, recipe, True)
    config.data.source.benchmarks_in_training = False
    sets_with(config, recipe, False)


def sets_with(config: Any, recipe: str, benchmarks: bool) -> None:
    """The sets of the text are those published, with the benchmarks' train splits or without."""
    source = cli.build(config.data.source)
    assert source.benchmarks == (list(FORMS) if benchmarks else [])
    sets = [(part.source.id, part.source.name) for part in source.parts if part.name != "benchmarks"]
    core = [("BAAI/Infinity-Instruct", "7M_core")]
    assert sets == core if recipe.startswith("mobilellm") else len(sets) == 5 and core[0] not in sets


def by_hand(config: Any, bits: float) -> float:
    """The paper's arithmetic: 16 bits over linear weights at `bits`, embeddings at 4, a 16-bit scale each group."""
    of, group = config.model.architecture, config.model.group
    inner, head = of.intermediate_size, of.head_dim
    attention = 2 * of.hidden_size * head * (of.num_attention_heads + of.num_key_value_heads)
    linear = of.num_hidden_layers * (attention + 3 * of.hidden_size * inner)
    embedding = of.vocab_size * of.hidden_size * (1 if of.tie_word_embeddings else 2)
    own = 2 * head if of.model_type == "qwen3" else 0  # norms of queries and keys
    norms = of.num_hidden_layers * (2 * of.hidden_size + own) + of.hidden_size
    stored = linear * (bits + 16 / group) + embedding * (4 + 16 / group) + norms * 16
    return 16 * (linear + embedding + norms) / stored


@EVERY
def test_opens_with_command_hardware_scores_and_source(recipe: str) -> None:
    lines = (EXPERIMENTS / f"{recipe}.yaml").read_text(encoding="utf-8").splitlines()
    opening = "\n".join(line for line in lines[: lines.index("defaults:")])
    for told in (f"python train.py experiment={recipe} ", "8 GPUs", "hours", "average", "2605.04062"):
        assert told in opening
    assert f"atio {PUBLISHED[recipe].ratio:.2f}" in opening


def test_the_omni_recipe() -> None:
    """Towers by name: the audio tower and the patches in 16 bits, everything else int4 in groups of 32."""
    config = cli.composed("train", [f"experiment={OMNI}"])
    assert (config.model.name, config.quant.name, config.model.group) == ("qwen2p5_omni_7b", "w4", 32)
    assert dict(config.distill.weights) == {"task": 0.1, "eakld": 2.0, "afd": 0.2}
    assert (config.distill.losses.eakld.k, config.distill.losses.eakld.gamma) == (16, "batch")
    assert (config.trainer.max_steps, config.trainer.learning_rate) == (1000, 1e-5)
    settings = cli.build(config.trainer)
    assert (settings.processes, settings.on_gpu, settings.strategy) == (GPUS, True, "fsdp2")
    recipe, skeleton = cli.build(config.quant), cli.model_source(config).skeleton()
    plan = recipe.plan(skeleton)
    assert recipe.w_a_kv == "W4-A16-KV16"
    named = {name: place.weights.label for name, place in plan.modules.items()}
    kept = {name for name, label in named.items() if label == "16"}
    assert kept == {n for n in named if n.startswith("model.audio_tower.")} | {
        "model.visual.patch_embed.proj"
    }
    groups = {place.weights.group for name, place in plan.modules.items() if name not in kept}  # type: ignore[attr-defined]
    assert groups == {32, 36}  # 3,420 is no multiple of 32; what the published code makes of it is not told
    size = measure(skeleton, plan)
    # linear weights of the decoder and its two ends at 4 bits and a 16-bit scale for 32, norms and biases at 16
    small = 28 * (2 * 3584 + 3584 + 2 * 512) + 3584
    by_hand = 16 * 7_615_616_512 / ((7_615_616_512 - small) * 4.5 + 16 * small)
    assert size.decoder.ratio_paper == pytest.approx(by_hand, rel=1e-6)
    lines = (EXPERIMENTS / f"{OMNI}.yaml").read_text(encoding="utf-8").splitlines()
    opening = "\n".join(line for line in lines[: lines.index("defaults:")])
    for told in (
        f"python train.py experiment={OMNI} ",
        "8 GPUs",
        "2605.04062",
        "62.22",
        "48.82",
        "62.81",
        "48.01",
    ):
        assert told in opening
    assert (
        f"atio {size.total.ratio_paper:.2f} " in opening and f"{size.decoder.ratio_paper:.2f} of" in opening
    )


# ------------------------------------------------------------------------------------------------------- runs

SMALL = (
    "-data.source.tokens",
    "model.weights=random",
    "data.sequence_length=64",
    "data.held_out=2",
    "data.rows_per_batch=1",
    "data.workers=1",
    "trainer.accumulate=2",
    "trainer.loader_workers=0",
    "trainer.max_steps=2",
)


def rows_of(id: str) -> list[dict[str, Any]]:
    """A few rows of each set, in its own columns."""
    turns = [
        [{"role": "user", "content": f"{n} and {n}?"}, {"role": "assistant", "content": f"{2 * n}."}]
        for n in range(8)
    ]
    for messages in turns:
        messages[1]["info"] = {"answer_content": messages[1]["content"]}  # type: ignore[assignment]
    if id == "baber/piqa":
        return [{"goal": f"count to {n}", "sol1": "aloud", "sol2": "no", "label": 0} for n in range(8)]
    column = "conversations" if id == "BAAI/Infinity-Instruct" else "messages"
    return [{column: messages} for messages in turns]


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """A hub with a few rows of every set, and the words that keep to one benchmark of it."""
    monkeypatch.setattr(datasets, "load_dataset", lambda id, name, split, streaming: iter(rows_of(id)))
    monkeypatch.setattr(hub, "revision_of", lambda id, revision: "a commit")
    return ("data.source.parts.benchmarks.source.tasks=[piqa]",)


THIN = (  # the width of a recipe's model, but one layer and few words
    "model.architecture.num_hidden_layers=1",
    "distill.losses.afd.top=1",
    "model.architecture.vocab_size=512",
    "model.architecture.bos_token_id=256",
    "model.architecture.eos_token_id=258",
)


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_a_run_says_whether_benchmarks_were_in_its_text(main_job: Any, razor: Any, played: Any) -> None:
    """In the plan, the report and its data, and in a comparison, where the two are not alike."""
    runs = {}
    for given, said in (
        (True, "Trained on the train splits of 1 benchmark tasks (piqa)"),
        (False, "No train split of a benchmark is in"),
    ):
        words = ("experiment=qwen3_0p6b/mixed_1p88", "model=tiny_qwen3", *SMALL, *played)
        done = main_job(*words, f"data.source.benchmarks_in_training={given}")
        assert done.code == 0, done.err
        assert f"text     {said}" in done.out.partition("report ")[0]
        found = report_of(done.folder)
        assert found["model"] == "tiny_qwen3" and found["benchmarks_in_training"] == (
            ["piqa"] if given else []
        )
        assert sum(note.startswith(said) for note in found["notes"]) == 1
        assert said in (done.folder / "report.md").read_text(encoding="utf-8")
        assert (found["steps"], found["config"]["distill"]["weights"]["task"]) == (2, 0.1)
        runs[given] = done.folder
    table = razor("compare", f"dirs=[{runs[True]},{runs[False]}]").out
    assert "not comparable, benchmarks trained on: " in table
    assert f"- {runs[True].name}: trained on the train splits of piqa;" in table


def test_a_base_model_reads_chats_as_text(main_job: Any, played: Any) -> None:
    done = main_job("experiment=mobilellm_350m/w1p58", "-model", *SMALL, *THIN, *played)
    assert done.code == 0, done.err
    assert report_of(done.folder)["rows"][-1]["w_a_kv"] == "W1.58-A8-KV8"


@pytest.mark.slow
@EVERY
def test_two_steps_in_the_very_shape(recipe: str, main_job: Any, tmp_path: Path) -> None:
    """Random weights, 64 tokens a row. Takes 16 GB; Qwen3-1.7B would take 42, and has 3 of its 28 layers here."""
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"{n} and {n} are {2 * n}." for n in range(200)), encoding="utf-8")
    words = ("-model", *SMALL, "data=local_text", f"data.source.path={text}", "logger=none", "data.seed=0")
    if recipe.startswith("qwen3_1p7b"):
        words = (*words, "model.architecture.num_hidden_layers=3")
    folder = main_job.folder()
    started = main_job.start(
        *main_job.words(f"experiment={recipe}", *words), f"hydra.run.dir={folder}", RAZOR_HEAP=None
    )
    out, err = started.communicate(timeout=1800)
    assert started.returncode == 0, err or out
    found = report_of(folder)
    assert (found["steps"], found["tokens_seen"] > 0) == (2, True)
    teacher, before, after = found["rows"]
    assert teacher["kl"] == 0 and after["kl"] > 0 and after["kl"] != before["kl"]
    if not recipe.startswith("qwen3_1p7b"):
        assert after["ratio_paper"] == pytest.approx(PUBLISHED[recipe].ratio, abs=0.005)
