"""The published recipe's text, as conf/data/paper_mix.yaml has it, from a hub that a test plays."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from razor.data.corpus import Corpus, check_source
from razor.data.sources import hub
from razor.data.sources.hub_benchmarks import FORMS
from razor.data.sources.paper_mix import PaperMix
from razor.errors import RazorError

CONFIG = Path(__file__).parents[3] / "conf" / "data" / "paper_mix.yaml"


def paper_mix(**options):
    source = OmegaConf.load(CONFIG).source
    source.parts.benchmarks.source.tasks = ["piqa"]
    return instantiate(OmegaConf.merge(source, options), _convert_="all")


def rows_of(id, name):
    """What each set holds, in its own columns."""
    if id == "BAAI/Infinity-Instruct":
        return [
            {
                "conversations": [
                    {"from": "human", "value": f"{name} {n}?"},
                    {"from": "gpt", "value": f"infinity {n}"},
                ]
            }
            for n in range(30)
        ]
    if id == "allenai/tulu-v3.1-mix-preview-4096-OLMoE":
        return [
            {
                "messages": [
                    {"role": "user", "content": f"{n}?"},
                    {"role": "assistant", "content": f"tulu {n}"},
                ]
            }
            for n in range(20)
        ]
    if id == "a-m-team/AM-DeepSeek-R1-Distilled-1.4M":
        turns = [
            [
                {"role": "user", "content": f"{name} {n}?", "info": {"source": "x", "answer_content": None}},
                {
                    "role": "assistant",
                    "content": f"<think>hm</think>am {n}",
                    "info": {"answer_content": f"am {n}" if n else None},
                },
            ]
            for n in range(12)
        ]
        return [{"messages": messages} for messages in turns]
    assert (id, name) == ("baber/piqa", None)
    return [{"goal": f"goal {n}", "sol1": f"piqa {n}", "sol2": "not so", "label": 0} for n in range(9)]


@pytest.fixture
def played(monkeypatch):
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda id, name, split, streaming: iter(rows_of(id, name)) if split == "train" else None,
    )
    monkeypatch.setattr(hub, "revision_of", lambda id, revision: "a commit")


def answers(corpus, tokenizer):
    documents = [*corpus.train.documents, *corpus.held_out.documents]
    return [tokenizer.decode(d.tokens[d.response]).removesuffix("<|im_end|>") for d in documents]


@pytest.mark.parametrize("benchmarks", [True, False])
def test_every_set_in_its_form(played, chat_tokenizer, capsys, caplog, benchmarks):
    mix = paper_mix(benchmarks_in_training=benchmarks)
    check_source(mix, lambda: chat_tokenizer)
    corpus = Corpus.build(mix, chat_tokenizer, 256, held_out=6)
    found = answers(corpus, chat_tokenizer)
    wanted = [f"infinity {n}" for n in range(30)] * 2 + [f"tulu {n}" for n in range(20)]
    wanted += [f"am {n}" for n in range(1, 12)] * 2  # without the reasoning; one has no answer
    wanted += [f"piqa {n}" for n in range(9)] if benchmarks else []
    assert sorted(found) == sorted(wanted)
    assert (
        sum("1 rows left out" in message and "info.answer_content" in message for message in caplog.messages)
        == 2
    )
    said = capsys.readouterr().err
    assert "infinity " in said and "(100 of it" not in said
    assert ("Trained on the train splits of 1 benchmark tasks (piqa)" in said) == benchmarks
    assert ("No train split of a benchmark" in said) != benchmarks


def test_sets_and_tasks_are_those_published():
    config = OmegaConf.load(CONFIG).source
    sets = [(part.source.id, part.source.name) for name, part in config.parts.items() if name != "benchmarks"]
    assert sets == [
        ("BAAI/Infinity-Instruct", "7M_domains"),
        ("BAAI/Infinity-Instruct", "Gen"),
        ("allenai/tulu-v3.1-mix-preview-4096-OLMoE", None),
        ("a-m-team/AM-DeepSeek-R1-Distilled-1.4M", "am_0.5M"),
        ("a-m-team/AM-DeepSeek-R1-Distilled-1.4M", "am_0.9M"),
    ]
    assert config.parts.benchmarks.source.tasks == list(FORMS)


def test_a_base_model_reads_the_core_set_as_plain_text(played, base_tokenizer):
    source = OmegaConf.load(CONFIG.with_name("paper_mix_base.yaml")).source
    source.parts.benchmarks.source.tasks = ["piqa"]
    corpus = Corpus.build(instantiate(source, _convert_="all"), base_tokenizer, 256, held_out=4)
    documents = [*corpus.train.documents, *corpus.held_out.documents]
    read = {(base_tokenizer.decode(d.tokens), base_tokenizer.decode(d.tokens[d.response])) for d in documents}
    end = base_tokenizer.eos_token
    assert (f"7M_core 3?\nAnswer: infinity 3{end}", f"infinity 3{end}") in read
    assert (f"Question: goal 3\nAnswer: piqa 3{end}", f" piqa 3{end}") in read
    assert len(documents) == 39


def test_no_network_is_one_line_before_anything(monkeypatch, chat_tokenizer):
    def unreachable(id, revision):
        raise ConnectionError("Name or service\nnot known")

    monkeypatch.setattr(hub, "revision_of", unreachable)
    monkeypatch.setattr(datasets, "load_dataset", None)
    with pytest.raises(RazorError, match=r"part 'infinity' .*'BAAI/Infinity-Instruct'.*not known") as error:
        check_source(paper_mix(), lambda: chat_tokenizer)
    assert "\n" not in str(error.value)


def test_the_switch():
    parts = {"a": {"source": paper_mix().parts[0].source}}
    assert len(PaperMix(parts, benchmarks_in_training=False).parts) == 1
    with pytest.raises(RazorError, match="benchmarks_in_training=maybe"):
        PaperMix(parts, benchmarks_in_training="maybe")
    with pytest.raises(RazorError, match="has no 'benchmarks'"):
        PaperMix(parts, benchmarks_in_training=True)
