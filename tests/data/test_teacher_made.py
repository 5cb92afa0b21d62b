from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view

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


def test_hashes_of_the_first_recipe_hold(chat_tokenizer, base_tokenizer, counted):
    """Text that people have made must be found again: to change these, raise RECIPE_VERSION and say so."""
    source = TeacherMade(**SMALL)
    assert source.folder(chat_tokenizer, counted.teacher).name == "eab0a6a26bcd28e5"
    assert source.folder(base_tokenizer, counted.teacher).name == "c73af7a161d6570d"


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("Hi\nWho are you?\nWhere is it then?\n")
    return str(path)


def test_a_mix_of_all_kinds(chat_tokenizer, counted, prompts):
    mix = {"chat": 2, "text": 1, "file": 1}
    source = TeacherMade(**{**SMALL, "tokens": 400, "batch_size": 16}, mix=mix, prompts=prompts)
    documents = source.documents(chat_tokenizer, counted.teacher)
    said = [chat_tokenizer.decode(document.tokens[~document.response]) for document in documents]
    asked = [text for text in said if any(f"user\n{line}<" in text for line in ("Hi", "Who are you?"))]
    texts = [document for document in documents if document.is_text]
    assert asked and texts and len(asked) + len(texts) < len(said)
    assert tokens(source.documents(chat_tokenizer, counted.teacher)) == tokens(documents)
    assert counted.loads == 1


def test_what_a_mix_holds_decides_the_folder(chat_tokenizer, counted, prompts, tmp_path):
    def folder(**options):
        return TeacherMade(**{**SMALL, **options}).folder(chat_tokenizer, counted.teacher)

    other = tmp_path / "other.txt"
    other.write_text("Hi\nWho are you?\nWhere is it now?\n")
    novel = tmp_path / "novel.txt"
    novel.write_text("Call me what you like. I do not mind.\n\nThat was all.")
    ramp = {"from": 1.2, "to": 0.8, "tokens": 4}
    folders = [
        folder(),
        folder(mix={"chat": 1}),
        folder(mix={"chat": 1, "text": 1}),
        folder(mix={"chat": 2, "text": 1}),
        folder(mix={"chat": 1, "file": 1}, prompts=prompts),
        folder(mix={"chat": 1, "file": 1}, prompts=str(other)),
        folder(mix={"text": 1}, passages=str(novel)),
        folder(mix={"text": 1}, passages=str(novel), prefix_tokens=3),
        folder(temperature=ramp),
        folder(temperature={**ramp, "tokens": 5}),
    ]
    assert len(set(folders)) == len(folders)
    assert folder(mix={"chat": 3, "text": 3}) == folders[2]
    assert folder(near_duplicates=0.5, min_tokens=3) == folders[0]  # these act when shards are read
    assert counted.loads == 0


def test_filters_act_on_shards_that_are_there(chat_tokenizer, counted, batches, capsys):
    whole = TeacherMade(**SMALL).documents(chat_tokenizer, counted.teacher)
    capsys.readouterr()
    long = TeacherMade(**SMALL, min_tokens=9).documents(chat_tokenizer, counted.teacher)
    assert min(d.targets for d in long) >= 9 > min(d.targets for d in whole)
    kept = {d.key() for d in long}
    short = [d for d in whole if d.targets < 9]
    assert not kept & {d.key() for d in short} and kept >= {d.key() for d in whole if d.targets >= 9}
    said = capsys.readouterr()
    assert "too short" in said.err and "left out" in said.err and not said.out


def test_near_duplicates_are_left_out_and_counted(chat_tokenizer, counted, capsys):
    dull = Teacher("dull", lambda: circling(counted.model))
    every = TeacherMade(**SMALL).documents(chat_tokenizer, dull)
    capsys.readouterr()
    fewer = TeacherMade(**SMALL, near_duplicates=0.3).documents(chat_tokenizer, dull)
    assert "nearly repeated" in capsys.readouterr().err
    kept, earlier = {document.key() for document in fewer}, set()
    refused = [document for document in every if document.key() not in kept]
    assert refused and len(refused) < len(every)
    for document in every:
        runs = {tuple(run) for run in sliding_window_view(document.tokens[document.response], 5)}
        assert document.key() in kept or runs & earlier
        earlier |= runs


def circling(model):
    """A copy of the model whose favourite tokens are few: runs of five repeat from text to text."""
    model = copy.deepcopy(model)
    plain = model.forward

    def forward(*args, **kwargs):
        output = plain(*args, **kwargs)
        output.logits = output.logits * 0
        output.logits[..., 66:68] = 50.0
        return output

    model.forward = forward
    return model


def test_a_chat_of_a_model_without_template(base_tokenizer, counted):
    source = TeacherMade(**SMALL, mix={"chat": 1, "text": 1})
    with pytest.raises(RazorError, match="no chat template"):
        source.documents(base_tokenizer, counted.teacher)
    assert counted.loads == 0


@pytest.mark.parametrize(
    "options, text",
    [
        ({"mix": {"file": 1}}, "data.source.prompts=FILE"),
        ({"prompts": "p.txt"}, "prompts='p.txt' is not used"),
        ({"mix": {"chat": 1}, "prompts": "p.txt"}, "prompts='p.txt' is not used"),
        ({"mix": {"chat": 1}, "passages": "p.txt"}, "passages='p.txt' is not used"),
        ({"mix": {"chatt": 1}}, "unknown kind 'chatt'"),
        ({"mix": {"chat": -1}}, "mix.chat=-1"),
        ({"mix": {"file": 1}, "prompts": 3}, "prompts=3 must be the name"),
        ({"batch_size": "many"}, "batch_size=many"),
        ({"tokens": 1.5}, "tokens=1.5"),
        ({"top_p": "all"}, "top_p=all"),
        ({"near_duplicates": 0}, "near_duplicates=0"),
        ({"near_duplicates": 1.1}, "near_duplicates=1.1"),
        ({"min_tokens": 0}, "min_tokens=0"),
        ({"min_tokens": 30, "max_answer_tokens": 20}, "min_tokens=30 is more than an answer can have"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens=0"),
        ({"prefix_tokens": 0}, "prefix_tokens=0"),
        ({"temperature": {"from": 1.0}}, "data.source.temperature"),
    ],
)
def test_options_that_do_not_go_together(options, text):
    with pytest.raises(RazorError) as caught:
        TeacherMade(**options)
    assert text in str(caught.value) and "\n" not in str(caught.value)


def test_speed_is_that_of_writing(chat_tokenizer, counted, monkeypatch):
    bars = []
    real = teacher_made.progress_bar
    monkeypatch.setattr(teacher_made, "progress_bar", lambda *a, **k: bars.append(real(*a, **k)) or bars[-1])
    TeacherMade(**SMALL).documents(chat_tokenizer, counted.teacher)
    TeacherMade(**SMALL).documents(chat_tokenizer, counted.teacher)
    TeacherMade(**{**SMALL, "tokens": 300}).documents(chat_tokenizer, counted.teacher)
    first, read, more = bars
    assert first.initial == 0 and first.n == 150
    assert read.initial == read.n == 150
    assert 150 <= more.initial < more.n == 300
