from __future__ import annotations

import gzip
import json
import os

import pyarrow
import pyarrow.parquet
import pytest

from razor.data.document import from_text
from razor.data.sources import local_text
from razor.data.sources.local_jsonl import LocalJsonl
from razor.data.sources.local_text import LocalText
from razor.errors import RazorError

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
SHARED = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]


def learned(tokenizer, document):
    return tokenizer.decode(document.tokens[document.response])


def jsonl(tmp_path, *lines):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def test_all_shapes(tmp_path, chat_tokenizer):
    records = [
        {"prompt": "Hi", "response": "Yo", "id": 1},
        {"messages": CHAT},
        {"conversations": SHARED},
        {"text": "Yo\u2028"},
    ]
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path = jsonl(tmp_path, "\ufeff" + lines[0], "", *lines[1:])
    documents = LocalJsonl(path).documents(chat_tokenizer)
    assert [learned(chat_tokenizer, d) for d in documents[:3]] == ["Yo<|im_end|>"] * 3
    assert chat_tokenizer.decode(documents[3].tokens) == "Yo\u2028<|im_end|>"
    assert len({d.key() for d in documents[:3]}) == 1
    assert len(LocalJsonl(path, limit=2).documents(chat_tokenizer)) == 2


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("{'a': 1}", "no JSON"),
        ("[1, 2]", "list, not an object"),
        ('{"question": "a"}', r"keys \['question'\].*expected"),
        ('{"prompt": "a"}', r"keys \['prompt'\].*expected"),
        ('{"prompt": "a", "response": 3}', "'response' that is int"),
        ('{"text": null}', "'text' that is NoneType"),
        ('{"messages": []}', "empty one"),
        ('{"messages": "hi"}', "no list"),
        ('{"messages": ["hi"]}', "turn that is str"),
        ('{"messages": [{"role": "robot", "content": "a"}]}', "'robot'. Choices: assistant"),
        ('{"messages": [{"role": "user"}]}', "'content' that is NoneType"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "needs an 'assistant'"),
    ],
)
def test_bad_line_is_named(tmp_path, chat_tokenizer, line, text):
    path = jsonl(tmp_path, '{"text": "fine"}', "", line)
    with pytest.raises(RazorError, match=rf"Line 3 of .*data.jsonl'.*{text}") as raised:
        LocalJsonl(path).documents(chat_tokenizer)
    assert "\n" not in str(raised.value)


def test_chat_needs_a_template(tmp_path, base_tokenizer):
    with pytest.raises(RazorError, match=r"Line 1 .*no chat template"):
        LocalJsonl(jsonl(tmp_path, json.dumps({"messages": CHAT}))).documents(base_tokenizer)
    path = jsonl(tmp_path, '{"prompt": "a", "response": "b"}')
    assert len(LocalJsonl(path).documents(base_tokenizer)) == 1


def test_missing_empty_or_binary_jsonl(tmp_path, chat_tokenizer):
    for path in (tmp_path / "nowhere.jsonl", tmp_path):
        with pytest.raises(RazorError, match=r"is no file"):
            LocalJsonl(str(path)).documents(chat_tokenizer)
    with pytest.raises(RazorError, match=r"is empty"):
        LocalJsonl(jsonl(tmp_path, "", " ")).documents(chat_tokenizer)
    (tmp_path / "data.jsonl").write_bytes(b'{"text": "\xff\xfe"}')
    with pytest.raises(RazorError, match=r"UTF-8"):
        LocalJsonl(str(tmp_path / "data.jsonl")).documents(chat_tokenizer)
    with pytest.raises(RazorError, match=r"limit=0"):
        LocalJsonl("x", limit=0)


def test_many_files_packed_or_not(tmp_path, base_tokenizer):
    """In the order of their names; the same records in every form."""
    texts = [f"text {n}" for n in range(9)]
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    (tmp_path / "a.jsonl").write_text("".join(lines[:3]))
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as stream:
        stream.writelines(lines[3:6])
    (tmp_path / "deep").mkdir()
    rows = [{"text": text, "messages": None} for text in texts[6:]]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "deep" / "c.parquet")
    (tmp_path / "notes.txt").write_text("not a record")

    def read(path, **options):
        documents = LocalJsonl(str(path), **options).documents(base_tokenizer)
        return [
            base_tokenizer.decode(document.tokens).removesuffix("<|endoftext|>") for document in documents
        ]

    assert read(tmp_path) == texts
    assert read(tmp_path / "*.jsonl*") == texts[:6]
    assert read(tmp_path, limit=4) == texts[:4]
    assert read(tmp_path / "deep" / "c.parquet") == texts[6:]


def test_files_are_known_by_size_and_time(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "one"}))
    source = LocalJsonl(str(path))
    first = source.identity()
    assert source.identity() == first and json.loads(json.dumps(first)) == first
    assert source.size() == path.stat().st_size
    assert LocalJsonl(str(path), limit=1).identity() != first
    os.utime(path, ns=(1, 1))
    second = source.identity()
    path.write_text(json.dumps({"text": "two!"}))
    os.utime(path, ns=(1, 1))
    assert len({str(first), str(second), str(source.identity())}) == 3


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl.gz", b"no gzip", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}' * 99, mtime=0)[:-9], "cannot be read"),
        ("a.parquet", b"no parquet", "cannot be read as Parquet"),
        ("a.jsonl.zst", b"whatever", "pip install zstandard|cannot be read|zstd"),
    ],
)
def test_damaged_files(tmp_path, base_tokenizer, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RazorError, match=told) as error:
        LocalJsonl(str(tmp_path / name)).documents(base_tokenizer)
    assert "\n" not in str(error.value)


def test_a_long_file_is_read_in_parts(tmp_path, base_tokenizer, monkeypatch):
    monkeypatch.setattr(local_text, "PART", 50)
    text = "".join(f"line {n} of a text\n" for n in range(30)) + "x" * 120 + " end"
    (tmp_path / "long.txt").write_text(text)
    documents = LocalText(str(tmp_path / "long.txt")).documents(base_tokenizer)
    parts = [base_tokenizer.decode(document.tokens) for document in documents]
    assert "".join(parts) == text + "<|endoftext|>" and len(parts) > 10
    assert all(len(part) <= 120 for part in parts)
    assert all(part.endswith("\n") for part in parts[:10])


def test_parts_of_a_text_begin_and_end_once(base_tokenizer):
    class Marks:
        """As tokenizers do that begin and end every text."""

        eos_token_id = 258

        def __call__(self, text, add_special_tokens, verbose):
            ids = base_tokenizer(text)["input_ids"]
            return {"input_ids": [256, *ids, 258] if add_special_tokens else ids}

    parts = [
        from_text(Marks(), text, *place)
        for text, *place in (("a", True, False), ("b", False, False), ("c", False, True), ("d", True, True))
    ]
    ids = {letter: base_tokenizer(letter)["input_ids"][0] for letter in "abcd"}
    assert [part.tokens.tolist() for part in parts] == [
        [256, ids["a"]],
        [ids["b"]],
        [ids["c"], 258],
        [256, ids["d"], 258],
    ]


def test_text_from_file_folder_and_pattern(tmp_path, base_tokenizer):
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.txt").write_text("bee")
    (tmp_path / "deep" / "a.md").write_text("ay")
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "code.py").write_text("print()")

    def read(path):
        documents = LocalText(str(path)).documents(base_tokenizer)
        return [base_tokenizer.decode(document.tokens) for document in documents]

    assert read(tmp_path / "b.txt") == ["bee<|endoftext|>"]
    assert read(tmp_path) == ["bee<|endoftext|>", "ay<|endoftext|>"]
    assert read(tmp_path / "**" / "*.py") == ["print()<|endoftext|>"]
    with pytest.raises(RazorError, match=r"only empty files"):
        read(tmp_path / "blank.txt")


def test_no_text(tmp_path, base_tokenizer):
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "*.txt"):
        with pytest.raises(RazorError, match=r"gives no text"):
            LocalText(str(path)).documents(base_tokenizer)
    (tmp_path / "odd.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(RazorError, match=r"odd.txt' is no UTF-8"):
        LocalText(str(tmp_path)).documents(base_tokenizer)
