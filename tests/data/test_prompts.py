from __future__ import annotations

import json

import pytest

from razor.data.prompts import passage_turns, prompt_turns
from razor.data.sampling import Free
from razor.errors import RazorError


@pytest.fixture
def file(tmp_path):
    def write(text, name="prompts.txt"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def lines(*records):
    return "\n".join(json.dumps(record) for record in records)


def test_lines_become_user_turns(chat_tokenizer, file):
    turns = prompt_turns(chat_tokenizer, file("Hello?\n\n  And you? \n"), 90, 20)
    assert [chat_tokenizer.decode(start) for start in turns.starts] == [
        f"<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n" for said in ("Hello?", "And you?")
    ]
    assert turns.script == (Free(20, frozenset({256, 257, 258}), frozenset({258})),)


def test_lines_are_gone_on_from_without_a_template(base_tokenizer, file):
    turns = prompt_turns(base_tokenizer, file("Once upon\n"), 90, 20)
    assert turns.starts == ((256, *base_tokenizer("Once upon", add_special_tokens=False)["input_ids"]),)
    assert turns.script == (Free(20, frozenset({256, 257, 258}), frozenset({256})),)


def test_records_of_all_shapes(chat_tokenizer, file):
    chat = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Go on"},
    ]
    path = file(
        lines({"prompt": "Hi"}, {"messages": chat}, {"conversations": [{"from": "human", "value": "Hi"}]}),
        "p.jsonl",
    )
    first, second, third = prompt_turns(chat_tokenizer, path, 200, 20).starts
    assert first == third
    assert chat_tokenizer.decode(second) == chat_tokenizer.apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True
    )


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("p.txt", "", "prompts='{path}' is empty"),
        ("p.txt", "\n \n", "prompts='{path}' is empty"),
        ("p.md", "Hi", "must end in .txt"),
        ("p.txt", b"caf\xe9", "no UTF-8 text (byte 3)"),
        ("p.txt", "Hi\n" + "a" * 80, "Line 2 of '{path}' is a prompt of 99 tokens, template included"),
        ("p.jsonl", "{", "Line 1 of '{path}' is no JSON"),
        ("p.jsonl", "[1]", "Line 1 of '{path}' is list, not an object"),
        ("p.jsonl", lines({"prompt": "Hi"}, {"text": "Hi"}), "Line 2 of '{path}' has no prompt"),
        ("p.jsonl", lines({"prompt": " "}), "Line 1 of '{path}' has no prompt"),
        ("p.jsonl", lines({"prompt": 3}), "Line 1 of '{path}' has no prompt"),
        ("p.jsonl", lines({"messages": []}), "Line 1 of '{path}'"),
        ("p.jsonl", lines({"messages": [{"role": "bird", "content": "Hi"}]}), "a turn by 'bird'"),
        (
            "p.jsonl",
            lines({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
            "Line 1 of '{path}' ends with 'assistant': the user must speak last",
        ),
    ],
)
def test_what_is_no_prompt(chat_tokenizer, file, name, text, said):
    path = file(text, name)
    with pytest.raises(RazorError) as caught:
        prompt_turns(chat_tokenizer, path, 90, 20)
    assert said.format(path=path) in str(caught.value) and "\n" not in str(caught.value)


def test_no_file(chat_tokenizer, tmp_path):
    for missing in (str(tmp_path / "none.txt"), str(tmp_path / "none.jsonl")):
        with pytest.raises(RazorError, match=r"prompts=.*is no file"):
            prompt_turns(chat_tokenizer, missing, 90, 20)
    with pytest.raises(RazorError, match=r"passages=.*is no file"):
        passage_turns(chat_tokenizer, str(tmp_path), 4, 20)


def test_chat_without_a_template(base_tokenizer, file):
    path = file(lines({"messages": [{"role": "user", "content": "Hi"}]}), "p.jsonl")
    with pytest.raises(RazorError, match=r"Line 1 of .*no chat template"):
        prompt_turns(base_tokenizer, path, 90, 20)


def test_passages_give_their_first_tokens(base_tokenizer, chat_tokenizer, file):
    path = file("First one.\nSame.\n\n \n\nNo\n", "novel.txt")
    turns = passage_turns(base_tokenizer, path, 5, 20)
    assert [base_tokenizer.decode(start[1:]) for start in turns.starts] == ["First", "No"]
    assert {start[0] for start in turns.starts} == {256}
    assert passage_turns(chat_tokenizer, path, 5, 20).script[-1].limit == 20
    with pytest.raises(RazorError, match=r"passages=.*is empty"):
        passage_turns(base_tokenizer, file("\n\n", "empty.txt"), 5, 20)
