from __future__ import annotations

import datasets
import pytest

from razor.data.sources import hub as hub_module
from razor.data.sources.hub_instruct import HubInstruct
from razor.data.sources.hub_text import HubText
from razor.errors import RazorError

SHARED = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]


@pytest.fixture
def hub(monkeypatch):
    """Sets what the hub answers: rows, or an exception; and records what it was asked."""

    class Hub:
        def __init__(self):
            self.rows, self.error, self.asked = [], None, ()

        def load_dataset(self, *args, **kwargs):
            self.asked = (args, kwargs)
            if self.error:
                raise self.error
            return iter(self.rows) if kwargs["streaming"] else datasets.Dataset.from_list(self.rows)

    hub = Hub()
    monkeypatch.setattr(datasets, "load_dataset", hub.load_dataset)
    return hub


def test_text_column(hub, base_tokenizer):
    hub.rows = [{"line": text} for text in ("a", "", "b", "c", " ")]
    source = HubText("some/set", "v1", "test", "line")
    texts = [base_tokenizer.decode(d.tokens) for d in source.documents(base_tokenizer)]
    assert texts == ["a<|endoftext|>", "b<|endoftext|>", "c<|endoftext|>"]
    assert hub.asked == (("some/set", "v1"), {"split": "test", "streaming": False})
    joined = HubText("some/set", column="line", join=3, limit=4).documents(base_tokenizer)
    assert [base_tokenizer.decode(d.tokens) for d in joined] == [
        "ab<|endoftext|>",
        "c<|endoftext|>",
    ]


@pytest.mark.parametrize("streaming", [True, False])
def test_instructions(hub, chat_tokenizer, streaming):
    hub.rows = [{"talk": SHARED, "q": "Hi", "a": "Yo"}] * 3
    for columns in ({"messages": "talk"}, {"prompt": "q", "response": "a"}):
        source = HubInstruct("some/set", **columns, streaming=streaming, limit=2)
        documents = source.documents(chat_tokenizer)
        assert len(documents) == 2
        first = documents[0]
        assert chat_tokenizer.decode(first.tokens[first.response]) == "Yo<|im_end|>"


def test_odd_rows_are_left_out_and_counted(hub, chat_tokenizer, caplog):
    hub.rows = [{"talk": SHARED}, {"talk": SHARED[1:]}, {"talk": SHARED}]
    assert len(HubInstruct("some/set", messages="talk").documents(chat_tokenizer)) == 2
    (line,) = caplog.messages
    assert line.startswith("1 rows left out") and "Row 2 of 'some/set'" in line


def test_only_odd_rows(hub, base_tokenizer):
    hub.rows = [{"talk": SHARED}] * 50
    with pytest.raises(RazorError, match=r"Row 1 .*no chat template"):
        HubInstruct("some/set", messages="talk").documents(base_tokenizer)


@pytest.mark.parametrize("source", [HubText("no/such"), HubInstruct("no/such", messages="m")])
def test_hub_that_fails(hub, chat_tokenizer, source):
    hub.error = ConnectionError("Couldn't reach\n  the Hub")
    with pytest.raises(RazorError, match=r"'no/such'.*Couldn't reach the Hub.*teacher_made") as raised:
        source.documents(chat_tokenizer)
    assert "\n" not in str(raised.value)


def test_columns(hub, chat_tokenizer):
    hub.rows = [{"body": "a", "n": 1}]
    with pytest.raises(RazorError, match=r"'text'. Choices: body, n"):
        HubText("some/set").documents(chat_tokenizer)
    with pytest.raises(RazorError, match=r"'n'"):
        HubText("some/set", column="n").documents(chat_tokenizer)
    with pytest.raises(RazorError, match=r"'chat'. Choices: body, n"):
        HubInstruct("some/set", messages="chat").documents(chat_tokenizer)
    for columns in ({}, {"prompt": "q"}, {"messages": "m", "prompt": "q", "response": "a"}):
        with pytest.raises(RazorError, match=r"name either"):
            HubInstruct("some/set", **columns)


def test_chats_as_plain_text(hub, base_tokenizer):
    hub.rows = [{"talk": SHARED}] * 2
    source = HubInstruct("some/set", messages="talk", between=" => ")
    document = source.documents(base_tokenizer)[0]
    assert base_tokenizer.decode(document.tokens).endswith("Hi => Yo<|endoftext|>")
    assert "between" in source.identity()
    assert "between" not in HubInstruct("some/set", messages="talk").identity()  # as before there was one
    with pytest.raises(RazorError, match=r"between=' => ' .*'messages'"):
        HubInstruct("some/set", prompt="q", response="a", between=" => ")


def test_answers_apart_from_their_turns(hub, chat_tokenizer, caplog):
    def turns(info):
        return [
            {"role": "user", "content": "Hi", "info": None},
            {"role": "assistant", "content": "<think>Hm</think>Yo", "info": info},
        ]

    hub.rows = [
        {"m": turns({"answer_content": "Yo"})},
        {"m": turns(None)},
        {"m": turns({"answer_content": ""})},
    ]
    hub.rows += [{"m": None}]
    (document,) = HubInstruct("some/set", messages="m", answer="info.answer_content").documents(
        chat_tokenizer
    )
    assert chat_tokenizer.decode(document.tokens[document.response]) == "Yo<|im_end|>"
    assert "3 rows left out" in caplog.text and "Row 2" in caplog.text
    with pytest.raises(RazorError, match="name 'messages' too"):
        HubInstruct("some/set", prompt="q", response="a", answer="info.x")


@pytest.fixture
def revisions(monkeypatch):
    known = {"some/set": "abc"}

    def revision_of(id, revision):
        if id not in known:
            raise ConnectionError("Name or service\nnot known")
        return revision or known[id]

    monkeypatch.setattr(hub_module, "revision_of", revision_of)
    return known


@pytest.mark.parametrize("kind", [HubText, lambda *a, **k: HubInstruct(*a, messages="m", **k)])
def test_a_data_set_is_known_by_its_revision(revisions, kind):
    source = kind("some/set")
    source.check()
    first = source.identity()
    assert first == kind("some/set").identity() and first["revision"] == "abc"
    assert kind("some/set", streaming=not source.streaming).identity() == first  # the same rows
    revisions["some/set"] = "def"
    others = [kind("some/set", limit=3), kind("some/set", "v2"), kind("some/set", split="test"), source]
    assert len({str(other.identity()) for other in others} | {str(first)}) == 5
    assert kind("some/set", revision="abc").identity() == first | {"revision": "abc"}
    assert source.size() is None and kind("some/set", limit=10).size() == 20_000


@pytest.mark.parametrize("kind", [HubText, lambda *a, **k: HubInstruct(*a, messages="m", **k)])
def test_no_network_is_found_before_reading(hub, revisions, kind, monkeypatch, tmp_path):
    with pytest.raises(RazorError, match=r"'no/such'.*not known.*teacher_made") as raised:
        kind("no/such").check()
    assert "\n" not in str(raised.value) and hub.asked == ()
    assert kind("no/such").identity()["revision"] is None
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    (tmp_path / "no___such").mkdir()
    kind("no/such", streaming=False).check()  # downloaded before
    with pytest.raises(RazorError):
        kind("no/such", streaming=True).check()
    kind(str(tmp_path), streaming=True).check()  # a folder


def test_a_revision_is_asked_for(hub, base_tokenizer):
    hub.rows = [{"text": "a"}]
    HubText("some/set", revision="abc").documents(base_tokenizer)
    assert hub.asked[1]["revision"] == "abc"


def test_nothing_there(hub, chat_tokenizer):
    with pytest.raises(RazorError, match=r"no rows"):
        HubInstruct("some/set", messages="m").documents(chat_tokenizer)
    with pytest.raises(RazorError, match=r"no text"):
        HubText("some/set", streaming=True).documents(chat_tokenizer)
    with pytest.raises(RazorError, match=r"join=0"):
        HubText("some/set", join=0)
