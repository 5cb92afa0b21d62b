"""Each task's rows become what lm-eval itself asks and scores as right."""

from __future__ import annotations

from types import SimpleNamespace

import datasets
import pytest

from razor.data.sources.hub_benchmarks import FORMS, HubBenchmarks
from razor.errors import RazorError

CHOICES = {"text": ["moss", "a stone", "air"], "label": ["A", "B", "C"]}

SINKS = {"question": "What sinks?", "choices": CHOICES, "answerKey": "B"}

ROWS = {  # one row of each data set, in its own columns
    ("allenai/ai2_arc", "ARC-Easy"): (
        "arc_easy",
        {"question": "What sinks?", "choices": CHOICES, "answerKey": "B"},
    ),
    ("allenai/ai2_arc", "ARC-Challenge"): (
        "arc_challenge",
        {"question": "What floats?", "choices": CHOICES | {"label": ["1", "2", "3"]}, "answerKey": "1"},
    ),
    ("Rowan/hellaswag", None): (
        "hellaswag",
        {
            "activity_label": "Baking",
            "ctx_a": "A man stirs [substeps] dough.",
            "ctx_b": "he",
            "endings": ["sleeps.", "bakes [title]  it.", "runs.", "sings."],
            "label": "1",
        },
    ),
    ("aps/super_glue", "boolq"): (
        "boolq",
        {"passage": "Ice is cold.", "question": "is ice cold", "label": 1},
    ),
    ("baber/piqa", None): ("piqa", {"goal": "Open a jar", "sol1": "Twist.", "sol2": "Wait.", "label": 0}),
    ("allenai/winogrande", "winogrande_xl"): (
        "winogrande",
        {"sentence": "Ann thanked Eve as _ had helped.", "option1": "Ann", "option2": "Eve", "answer": "2"},
    ),
    ("lighteval/siqa", None): (
        "social_iqa",
        {
            "context": "Kim fell.",
            "question": "What next?",
            "answerA": "got up",
            "answerB": "flew",
            "answerC": "sang",
            "label": "3",
        },
    ),
    ("allenai/openbookqa", "main"): (
        "openbookqa",
        {"question_stem": "The sun is", "choices": CHOICES, "answerKey": " C"},
    ),
    ("EleutherAI/hendrycks_ethics", "commonsense"): ("ethics_cm", {"input": "I lied.", "label": 1}),
    ("EleutherAI/hendrycks_ethics", "deontology"): (
        "ethics_deontology",
        {"scenario": "Should you go?", "excuse": "No, I am ill. ", "label": 0},
    ),
    ("EleutherAI/hendrycks_ethics", "justice"): ("ethics_justice", {"scenario": "He paid me.", "label": 1}),
    ("EleutherAI/hendrycks_ethics", "utilitarianism"): (
        "ethics_utilitarianism",
        {"activity": "I won a prize.", "baseline": "I lost a shoe."},
    ),
    ("EleutherAI/hendrycks_ethics", "virtue"): (
        "ethics_virtue",
        {"scenario": "He fled.", "trait": "brave", "label": 0},
    ),
}


@pytest.fixture
def hub(monkeypatch):
    asked = SimpleNamespace(sets=[], rows={key: [row] for key, (_, row) in ROWS.items()})

    def load_dataset(id, name, split, streaming):
        assert split == "train"
        asked.sets.append((id, name))
        return datasets.Dataset.from_list(asked.rows[id, name])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_all_nine(hub, chat_tokenizer):
    source = HubBenchmarks()
    documents = source.documents(chat_tokenizer)
    assert hub.sets == list(ROWS) and len(documents) == len(ROWS) and len(FORMS) == 9
    chat = "<|im_start|>user\nWhat sinks?<|im_end|>\n<|im_start|>assistant\na stone<|im_end|>"
    assert chat.replace("What sinks?", "Question: What sinks?\nAnswer:") in chat_tokenizer.decode(
        documents[0].tokens
    )
    assert chat_tokenizer.decode(documents[0].tokens[documents[0].response]) == "a stone<|im_end|>"


def test_a_base_model_reads_question_and_answer(hub, base_tokenizer):
    (document,) = HubBenchmarks(["piqa"]).documents(base_tokenizer)
    assert base_tokenizer.decode(document.tokens) == "Question: Open a jar\nAnswer: Twist.<|endoftext|>"
    assert base_tokenizer.decode(document.tokens[document.response]) == " Twist.<|endoftext|>"


@pytest.fixture(scope="module")
def tasks():
    manager = pytest.importorskip("lm_eval.tasks").TaskManager()
    names = {
        "arc_easy",
        "arc_challenge",
        "hellaswag",
        "boolq",
        "piqa",
        "winogrande",
        "social_iqa",
        "openbookqa",
    }
    ethics = {"ethics_cm", "ethics_deontology", "ethics_justice", "ethics_utilitarianism", "ethics_virtue"}
    return manager, names | ethics


@pytest.mark.parametrize("key", list(ROWS), ids=lambda key: "-".join(map(str, key)))
def test_words_are_those_of_lm_eval(hub, tasks, key, monkeypatch):
    from lm_eval.api.task import ConfigurableTask

    manager, _ = tasks
    name, row = ROWS[key]
    local = {split: datasets.Dataset.from_list([row]) for split in ("train", "validation", "test")}

    def download(self, *args, **kwargs):
        self.dataset = datasets.DatasetDict(local)

    monkeypatch.setattr(ConfigurableTask, "download", download)
    loaded = manager.load_task_or_group([name])
    task = loaded[name] if name in loaded else next(iter(loaded.values()))
    (doc,) = list(task.training_docs())
    choices = task.doc_to_choice(doc)
    if (
        name == "winogrande"
    ):  # scored the other way round: each choice begins the sentence, the target ends it
        wanted = (choices[task.doc_to_text(doc)], task.doc_to_target(doc))
    else:
        target = task.doc_to_target(doc)
        wanted = (task.doc_to_text(doc), choices[int(target)])
    (form,) = [form for forms in FORMS.values() for form in forms if (form.id, form.name) == key]
    assert (task.config.dataset_path, task.config.dataset_name) == key
    assert form.pair(row) == wanted


def test_limit_and_identity(hub, chat_tokenizer, monkeypatch):
    revisions = {}
    monkeypatch.setattr("razor.data.sources.hub_benchmarks.known_revision", lambda id: revisions.get(id, "r"))
    hub.rows["baber/piqa", None] *= 3
    source = HubBenchmarks(["piqa", "boolq"], limit=2)
    assert len(source.documents(chat_tokenizer)) == 3
    identity = source.identity()
    assert identity != HubBenchmarks(["piqa", "boolq"]).identity()
    revisions["aps/super_glue"] = "s"
    assert source.identity() != identity
    revisions["aps/super_glue"] = None
    assert source.identity()["revision"] is None


def test_errors(hub, chat_tokenizer):
    with pytest.raises(RazorError, match=r"'piqua'.*Did you mean 'piqa'"):
        HubBenchmarks(["piqua"])
    hub.rows["baber/piqa", None] = [{"goal": "Open a jar", "label": 0}]
    with pytest.raises(RazorError, match=r"Row 1 of 'baber/piqa'.*KeyError 'sol1'"):
        HubBenchmarks(["piqa"]).documents(chat_tokenizer)
