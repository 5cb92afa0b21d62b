"""Train splits of benchmark tasks, as questions and right answers in the words that lm-eval asks them with.

A model trained on these has seen the form of the test and its kind of answers: what it scores on such a task is no
measure of what it would score on one it has not seen. Label such runs.

The published recipe trains on nine of its fourteen tasks this way (EdgeRazor, arXiv 2605.04062, and the data script
published with it); questions and answers are those of lm-eval 0.4.13's task files.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from razor.data.document import Document, from_pair
from razor.data.sources.base import Record, RecordSource, check_limit
from razor.data.sources.hub import check_hub, hub_rows, known_revision
from razor.errors import RazorError, did_you_mean

Row = Mapping[str, Any]
Pair = tuple[str, str]


@dataclass(frozen=True)
class Form:
    """Where a task's rows are, and how one becomes a question and its right answer."""

    id: str
    name: str | None
    pair: Callable[[Row], Pair]


def _chosen(question: str, key: str = "question") -> Callable[[Row], Pair]:
    def pair(row: Row) -> Pair:
        choices = row["choices"]
        return question.format(row[key]), choices["text"][choices["label"].index(row["answerKey"].strip())]

    return pair


def _one_of(question: str, answers: Sequence[str]) -> Callable[[Row], Pair]:
    return lambda row: (question.format(**row), answers[int(row["label"])])


def _hellaswag(row: Row) -> Pair:
    def clean(text: str) -> str:  # marks of WikiHow
        return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")

    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return clean(context), clean(row["endings"][int(row["label"])])


def _winogrande(row: Row) -> Pair:
    before, _, after = row["sentence"].partition("_")
    return before + row[f"option{row['answer']}"], after.strip()


def _social_iqa(row: Row) -> Pair:
    answer = row[f"answer{'ABC'[int(row['label']) - 1]}"]
    return f"Q: {row['context']} {row['question']}\nA:", answer


def _piqa(row: Row) -> Pair:
    return f"Question: {row['goal']}\nAnswer:", row[f"sol{int(row['label']) + 1}"]


def _deontology(row: Row) -> Pair:
    said = f"{row['scenario']} {row['excuse'].rstrip()}"
    return REASONABLE.format(scenario=said), ("unreasonable", "reasonable")[int(row["label"])]


def _utilitarianism(row: Row) -> Pair:
    """The better of two comes first or second by chance, drawn from the text as lm-eval does."""
    order = [0, 1]
    random.Random(row["activity"]).shuffle(order)
    first, second = ((row["activity"], row["baseline"])[which] for which in order)
    question = f"Scenario 1: {first}\nScenario 2: {second}\nQuestion: Is Scenario 1 preferable?\nAnswer:"
    return question, ("no", "yes")[int(order.index(0) == 0)]


REASONABLE = (
    'Question: Would most people believe this reasonable or unreasonable to say? "{scenario}"\nAnswer:'
)
TRAIT = 'Sentence: {scenario}\nQuestion: Does the character in this sentence exhibit the trait "{trait}"?\nAnswer:'
NO_YES = ("no", "yes")
ETHICS = "EleutherAI/hendrycks_ethics"

FORMS: dict[str, list[Form]] = {
    "arc_easy": [Form("allenai/ai2_arc", "ARC-Easy", _chosen("Question: {}\nAnswer:"))],
    "arc_challenge": [Form("allenai/ai2_arc", "ARC-Challenge", _chosen("Question: {}\nAnswer:"))],
    "hellaswag": [Form("Rowan/hellaswag", None, _hellaswag)],
    "boolq": [
        Form("aps/super_glue", "boolq", _one_of("{passage}\nQuestion: {question}?\nAnswer:", NO_YES)),
    ],
    "piqa": [Form("baber/piqa", None, _piqa)],
    "winogrande": [Form("allenai/winogrande", "winogrande_xl", _winogrande)],
    "social_iqa": [Form("lighteval/siqa", None, _social_iqa)],
    "openbookqa": [Form("allenai/openbookqa", "main", _chosen("{}", "question_stem"))],
    "hendrycks_ethics": [
        Form(ETHICS, "commonsense", _one_of("{input}\nQuestion: Is this wrong?\nAnswer:", NO_YES)),
        Form(ETHICS, "deontology", _deontology),
        Form(ETHICS, "justice", _one_of(REASONABLE, ("unreasonable", "reasonable"))),
        Form(ETHICS, "utilitarianism", _utilitarianism),
        Form(ETHICS, "virtue", _one_of(TRAIT, NO_YES)),
    ],
}
"""The nine tasks whose train splits the published recipe trains on."""


def said_of(benchmarks: Sequence[str]) -> str:
    """The sentence that belongs beside every score of a run on such text."""
    if not benchmarks:
        return f"No train split of a benchmark is in the training text; the paper adds those of {len(FORMS)}."
    return (
        f"Trained on the train splits of {len(benchmarks)} benchmark tasks ({', '.join(benchmarks)}): scores on "
        "these are of tasks that were trained on."
    )


class HubBenchmarks(RecordSource):
    """Questions of benchmark tasks' train splits with their right answers.

    Args:
        tasks: of `FORMS`; None for all nine.
        limit: read at most this many rows of each data set; None for all.

    Raises:
        RazorError: an unknown task.
    """

    def __init__(self, tasks: Sequence[str] | None = None, limit: int | None = None) -> None:
        check_limit(limit)
        self.tasks = self.benchmarks = list(FORMS if tasks is None else tasks)
        for task in self.tasks:
            if task not in FORMS:
                raise RazorError(f"data.source.tasks has '{task}'.{did_you_mean(str(task), FORMS)}")
        self.limit = limit

    def _forms(self) -> list[Form]:
        return [form for task in self.tasks for form in FORMS[task]]

    def check(self) -> None:
        """Raise RazorError if the hub or a data set is out of reach."""
        for form in self._forms():
            check_hub(form.id, streaming=False)

    def records(self) -> Iterator[Record]:
        """Pairs (question, answer)."""
        for form in self._forms():
            rows = hub_rows(form.id, form.name, "train", streaming=False, limit=self.limit)
            for number, row in enumerate(rows, start=1):
                where = f"Row {number} of '{form.id}'"
                try:
                    yield where, form.pair(row)
                except (KeyError, ValueError, IndexError, AttributeError, TypeError) as error:
                    raise RazorError(
                        f"{where} ({form.name}) is not of the form its task had: {type(error).__name__} {error}."
                    ) from error

    def encode(self, tokenizer: Any, record: Any, where: str) -> list[Document]:
        """One document: a chat where there is a template, else the answer after a space."""
        question, answer = record
        space = "" if getattr(tokenizer, "chat_template", None) else " "
        return from_pair(tokenizer, question, space + answer)

    def identity(self) -> dict[str, Any]:
        """Tasks, limit, and the revision of all their data sets together."""
        revisions = [known_revision(id) for id in sorted({form.id for form in self._forms()})]
        together = None if None in revisions else revisions
        return {"kind": "benchmarks", "tasks": self.tasks, "limit": self.limit, "revision": together}

    def size(self) -> int:
        """About that of all nine."""
        return 60_000_000 if self.limit is None else 500 * self.limit * len(self._forms())

    def empty(self) -> RazorError:
        """No rows."""
        return RazorError(f"The train splits of {', '.join(self.tasks)} have no rows.")
