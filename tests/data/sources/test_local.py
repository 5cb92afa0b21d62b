from __future__ import annotations

import json

import pytest

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
