"""What a task is asked as: pinned values, versions, groups."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from razor.cli import build, composed
from razor.errors import RazorError
from razor.evals import Benchmark
from razor.evals.lm_tasks import GROUPS_FOLDER, check_versions, leaves_of, version_of
from razor.evals.rows_sources import CHOICES, GROUPS, HUB_ONLY, TASKS
from razor.evals.tasks import Task, described

# the table, as its description has it: method.md says shots, chat templates and metrics
TABLE = {
    "arc_easy": ("acc_norm", 0, False),
    "arc_challenge": ("acc_norm", 0, False),
    "hellaswag": ("acc_norm", 0, False),
    "boolq": ("acc", 0, False),
    "piqa": ("acc_norm", 0, False),
    "winogrande": ("acc", 0, False),
    "social_iqa": ("acc", 0, False),
    "openbookqa": ("acc_norm", 0, False),
    "hendrycks_ethics": ("acc", 0, False),
    "truthfulqa_mc2": ("acc", 0, False),
    "mmlu": ("acc", 0, False),
    "ifeval": ("prompt_level_strict_acc", 0, True),
    "gsm8k": ("exact_match,strict-match", 5, False),
    "humaneval_instruct": ("pass@1", 0, True),
}


def of(option: str, *words: str) -> Benchmark:
    return build(composed("train", [f"evals={option}", *words]).evals)  # type: ignore[no-any-return]


def test_the_table_is_the_papers() -> None:
    table = of("table")
    asked = {task.name: (task.metric, task.num_fewshot, task.chat_template) for task in table.described}
    assert asked == TABLE and list(asked) == list(TABLE)
    assert all(task.version for task in table.described) and table.limit is None
    base = of("table_base").described
    assert [task.name for task in base] == [*list(TABLE)[:11], "gsm8k", "humaneval"]
    assert not any(task.chat_template for task in base)


def test_offline_has_all_of_the_table_that_packages_have() -> None:
    offline = of("offline")
    assert set(offline.tasks) <= set(CHOICES) and offline.rows == "package"
    assert set(TABLE) - set(offline.tasks) == {*HUB_ONLY, "gsm8k"}  # whose examples are a training split's


def test_a_shorter_list_keeps_what_is_pinned() -> None:
    (one,) = of("table", "evals.tasks=[gsm8k]").described
    assert (one.num_fewshot, one.metric) == (5, "exact_match,strict-match")
    first, second = of("table"), of("table", "evals.pinned.gsm8k.num_fewshot=4")
    assert first.key("x") != second.key("x")
    assert first.only("piqa").key("x") == of("table", "evals.tasks=[piqa]").key("x")


def test_groups_for_lm_evals_own_command_are_the_same_table() -> None:
    for option in ("table", "table_base"):
        config = yaml.safe_load((GROUPS_FOLDER / f"razor_{option}.yaml").read_text())
        items = [item if isinstance(item, dict) else {"task": item} for item in config["task"]]
        shots = {item["task"]: item.get("num_fewshot", 0) for item in items}
        assert shots == {task.name: task.num_fewshot for task in of(option).described}


def entry(kind: str, version: Any = None, tags: tuple[str, ...] = (), task: list[Any] | None = None) -> Any:
    cfg = {"metadata": {"version": version}} | ({} if task is None else {"task": task})
    return SimpleNamespace(kind=SimpleNamespace(name=kind), tags=set(tags), cfg=cfg)


def test_another_version_of_a_task_is_an_error() -> None:
    index = {
        "piqa": entry("TASK", 1.0),
        "a": entry("TASK", 1.0),
        "b": entry("TASK", 2.0),
        "letters": entry("TAG", tags=("b", "a")),
        "all": entry("GROUP", 3, task=["letters", {"task": "piqa"}]),
    }
    assert leaves_of(index, "all") == ["a", "b", "piqa"]
    assert (version_of(index, "piqa"), version_of(index, "all")) == ("1.0", "3/1.0/2.0")
    manager: Any = SimpleNamespace(task_index=index)
    check_versions(manager, [Task("piqa", version="1.0"), Task("b")])
    with pytest.raises(
        RazorError, match=r"'b' is version 2\.0 .* pinned to 1\.0.*evals\.pinned\.b\.version=null"
    ):
        check_versions(manager, [Task("piqa", version="1.0"), Task("b", version="1.0")])


def test_the_installed_lm_eval_has_the_pinned_versions() -> None:
    """Of all tasks of the table, those of the hub too, from lm-eval's files and our groups; no rows are loaded."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    home = Path(lm_eval.__file__).parent / "tasks"
    folders = {"hendrycks_ethics", "truthfulqa", *(source.config.split("/")[0] for source in TASKS.values())}
    manager = TaskManager(
        include_path=[*(home / name for name in sorted(folders)), GROUPS_FOLDER], include_defaults=False
    )
    for option in ("table", "table_base", "offline"):
        check_versions(manager, of(option).described)
    assert set(leaves_of(manager.task_index, "mmlu")) == set(GROUPS["mmlu"])
    assert len(leaves_of(manager.task_index, "hendrycks_ethics")) == 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shots": 5}, r"There is no evals\.pinned\.piqa\.shots.*num_fewshot"),
        ({"num_fewshot": -1}, r"evals\.pinned\.piqa\.num_fewshot=-1: use a whole number"),
        ({"chat_template": "yes"}, "chat_template=yes: use true or false"),
        ({"metric": 3}, "metric=3: use a name"),
    ],
)
def test_what_is_pinned_is_checked(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RazorError, match=message):
        described(["piqa"], {"piqa": given}, 0, False)


def test_what_packages_lack_is_said_at_once_and_together() -> None:
    with pytest.raises(RazorError) as error:
        Benchmark(list(TABLE), pinned={"gsm8k": {"num_fewshot": 5}})
    for part in ("EleutherAI/hendrycks_ethics", "truthfulqa/truthful_qa", "openai/gsm8k", "evals=offline"):
        assert part in str(error.value)
    Benchmark(
        ["gsm8k", "mmlu", "gsm8k_cot"], pinned={"mmlu": {"num_fewshot": 5}, "gsm8k_cot": {"num_fewshot": 8}}
    )


def test_generated_code_needs_a_word_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("razor.evals.harness.prepare_rows", lambda tasks: pytest.fail("fetched first"))
    for option in ("offline", "table", "table_base"):
        with pytest.raises(RazorError, match=r"humaneval\w* runs programs .*evals\.run_generated_code=true"):
            of(option).prepare()
