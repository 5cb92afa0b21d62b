from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from razor.data import teacher_made
from razor.data.document import Document
from razor.data.shards import load_shard, save_shard
from razor.data.sources.base import Teacher
from razor.data.teacher_made import TeacherMade
from razor.errors import RazorError

SMALL = {"tokens": 150, "max_user_tokens": 6, "max_answer_tokens": 12, "batch_size": 4}


class Counted:
    """A teacher that counts how often it is loaded and how many batches it has written."""

    def __init__(self, model):
        self.model = model
        self.loads = 0

    def load(self):
        self.loads += 1
        return self.model

    @property
    def teacher(self):
        return Teacher("tiny", self.load)


@pytest.fixture
def counted(tiny_model):
    return Counted(tiny_model)


@pytest.fixture
def batches(monkeypatch):
    """The batches written so far; set `.stop_at` to be interrupted at one."""

    class Batches(list):
        stop_at = None

    seen, real = Batches(), teacher_made.write

    def write(*args, **kwargs):
        if len(seen) == seen.stop_at:
            raise KeyboardInterrupt
        seen.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(teacher_made, "write", write)
    return seen


def tokens(documents):
    return [document.tokens.tolist() for document in documents]


def test_chats_learn_the_answer_only(chat_tokenizer, counted):
    documents = TeacherMade(**SMALL).documents(chat_tokenizer, counted.teacher)
    assert len(documents) >= 9
    for document in documents:
        first, last = np.flatnonzero(document.response)[[0, -1]]
        before = chat_tokenizer.decode(document.tokens[:first])
        assert before.startswith("<|im_start|>user\n")
        assert before.endswith("<|im_end|>\n<|im_start|>assistant\n")
        assert last == len(document) - 1 and document.response[first:].all()
        assert 1 <= last - first + 1 <= 12
        assert not set(document.tokens[first:last].tolist()) & {256, 257, 258}


def test_base_model_writes_text(base_tokenizer, counted):
    documents = TeacherMade(**SMALL).documents(base_tokenizer, counted.teacher)
    assert all(document.is_text and document.tokens[0] == 256 for document in documents)
    assert sum(len(document) - 1 for document in documents) >= 150


def test_second_time_is_read_without_a_teacher(chat_tokenizer, counted, batches):
    first = TeacherMade(**SMALL).documents(chat_tokenizer, counted.teacher)
    written = len(batches)
    second = TeacherMade(**SMALL).documents(chat_tokenizer, counted.teacher)
    assert tokens(first) == tokens(second) and counted.loads == 1 and len(batches) == written
    assert all((a.response == b.response).all() for a, b in zip(first, second, strict=True))


def test_interrupted_generation_continues(chat_tokenizer, counted, batches, tmp_path, monkeypatch):
    batches.stop_at = 1
    with pytest.raises(KeyboardInterrupt):
        TeacherMade(**SMALL).documents(chat_tokenizer, counted.teacher)
    batches.stop_at = None
    resumed = TeacherMade(**SMALL).documents(chat_tokenizer, counted.teacher)
    total = len(batches)
    monkeypatch.setenv("RAZOR_CACHE", str(tmp_path / "other"))
    whole = TeacherMade(**SMALL).documents(chat_tokenizer, counted.teacher)
    assert tokens(resumed) == tokens(whole)
    assert len(batches) - total == total  # the first batch was not written again


def test_more_tokens_continue_the_same_text(chat_tokenizer, counted, batches):
    few = TeacherMade(**SMALL).documents(chat_tokenizer, counted.teacher)
    written = len(batches)
    many = TeacherMade(**{**SMALL, "tokens": 300}).documents(chat_tokenizer, counted.teacher)
    assert tokens(many)[: len(few)] == tokens(few) and len(many) > len(few)
    assert len(batches) > written > 1


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "note", "empty note"])
def test_damaged_shard_is_said_and_made_again(chat_tokenizer, counted, batches, caplog, damage):
    source = TeacherMade(**SMALL)
    whole = source.documents(chat_tokenizer, counted.teacher)
    written = len(batches)
    data = source.folder(chat_tokenizer, counted.teacher) / "shard_00001.safetensors"
    note = data.with_suffix(".json")
    content = data.read_bytes()
    if damage == "flip":
        data.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    elif damage == "cut":
        data.write_bytes(content[: len(content) // 2])
    elif damage == "gone":
        data.unlink()
    else:
        note.write_text("{" if damage == "note" else "[]")
    again = source.documents(chat_tokenizer, counted.teacher)
    assert tokens(again) == tokens(whole) and len(batches) == written + 1
    (line,) = caplog.messages
    assert "shard_00001" in line and "damaged" in line and "\n" not in line
    source.documents(chat_tokenizer, counted.teacher)
    assert len(batches) == written + 1


def test_what_shapes_the_text_decides_the_folder(chat_tokenizer, base_tokenizer, counted):
    source = TeacherMade(**SMALL)
    folder = source.folder(chat_tokenizer, counted.teacher)
    assert TeacherMade(**{**SMALL, "tokens": 9}).folder(chat_tokenizer, counted.teacher) == folder
    other_template = copy.deepcopy(chat_tokenizer)
    other_template.chat_template = "be kind\n" + other_template.chat_template
    changed = [
        source.folder(base_tokenizer, counted.teacher),
        source.folder(other_template, counted.teacher),
        source.folder(chat_tokenizer, Teacher("other", counted.load)),
    ]
    for option in (
        {"max_user_tokens": 7},
        {"max_answer_tokens": 7},
        {"batch_size": 7},
        {"temperature": 0.7},
        {"top_p": 0.7},
        {"top_k": 7},
        {"seed": 7},
    ):
        changed.append(TeacherMade(**{**SMALL, **option}).folder(chat_tokenizer, counted.teacher))
    assert len({folder, *changed}) == len(changed) + 1
    assert counted.loads == 0


def always(model, token):
    """A copy of the model that says nothing but one token."""
    model = copy.deepcopy(model)
    plain = model.forward

    def forward(*args, **kwargs):
        output = plain(*args, **kwargs)
        output.logits = torch.full_like(output.logits, -50.0)
        output.logits[..., token] = 50.0
        return output

    model.forward = forward
    return model


@pytest.mark.parametrize("token", [258, 66], ids=["ends at once", "one letter for ever"])
def test_teacher_that_writes_nothing_usable(chat_tokenizer, tiny_model, token):
    source = TeacherMade(**{**SMALL, "max_user_tokens": 40, "max_answer_tokens": 40})
    with pytest.raises(RazorError, match="empty, repeated or circling"):
        source.documents(chat_tokenizer, Teacher("dull", lambda: always(tiny_model, token)))


def test_no_room_in_the_teacher(chat_tokenizer, counted):
    source = TeacherMade(**{**SMALL, "max_answer_tokens": 250})
    with pytest.raises(RazorError, match=r"at most 256 tokens.*max_answer_tokens"):
        source.documents(chat_tokenizer, counted.teacher)


def test_no_teacher(chat_tokenizer):
    with pytest.raises(RazorError, match="needs a teacher"):
        TeacherMade(**SMALL).documents(chat_tokenizer)


@pytest.mark.parametrize(
    "option",
    [
        {"tokens": 0},
        {"batch_size": 0},
        {"max_answer_tokens": -1},
        {"temperature": 0},
        {"top_p": 0},
        {"top_p": 1.5},
    ],
)
def test_numbers_out_of_range(option):
    with pytest.raises(RazorError, match=next(iter(option))):
        TeacherMade(**option)


def test_shards_hold_any_number_of_documents(tmp_path):
    documents = [Document(np.arange(n), np.arange(n) > 1) for n in (3, 5, 4)]
    for number in range(4):
        save_shard(tmp_path, number, documents[:number], list(range(number)))
    for number in range(4):
        loaded = load_shard(tmp_path, number)
        assert loaded is not None
        assert tokens(loaded[0]) == tokens(documents[:number])
        assert loaded[1] == list(range(number))
    assert load_shard(tmp_path, 4) is None
