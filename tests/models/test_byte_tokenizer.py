from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from razor.models import byte_tokenizer

CHAT, BASE = byte_tokenizer(), byte_tokenizer(chat=False)


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=40))
def test_any_text_comes_back(text):
    ids = CHAT.encode(text)
    assert len(ids) == len(text.encode()) and all(0 <= i < 256 for i in ids)
    assert CHAT.decode(ids) == text


def test_special_tokens():
    assert len(CHAT) == len(BASE) == 259
    assert (CHAT.bos_token_id, CHAT.pad_token_id, CHAT.eos_token_id) == (256, 256, 258)
    assert BASE.eos_token == "<|endoftext|>" and BASE.chat_template is None
    assert CHAT.encode("<|im_start|>a<|im_end|>") == [257, *CHAT.encode("a"), 258]
    assert CHAT.decode([257, *CHAT.encode("hi"), 258], skip_special_tokens=True) == "hi"


def test_chat_template():
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    text = CHAT.apply_chat_template(messages, tokenize=False)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n"
    asked = CHAT.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert asked == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    with pytest.raises(ValueError, match=r"chat template|chat_template"):
        BASE.apply_chat_template(messages, tokenize=False)
