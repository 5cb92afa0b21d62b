from __future__ import annotations

import copy

import pytest
import torch

from razor.data.sampling import Fixed, Free
from razor.data.turns import common_tokens, opening, text_turns, turns_of
from razor.errors import RazorError

END = 258  # <|im_end|>


def test_chat_is_split_at_the_user_turn(chat_tokenizer):
    turns = turns_of(chat_tokenizer, 40, 200)
    (start,) = turns.starts
    user, between, answer = turns.script
    assert chat_tokenizer.decode(start) == "<|im_start|>user\n"
    assert isinstance(between, Fixed)
    assert chat_tokenizer.decode(between.tokens) == "<|im_end|>\n<|im_start|>assistant\n"
    assert user == Free(40, frozenset({256, 257, 258}))
    assert answer == Free(200, frozenset({256, 257, 258}), frozenset({END}))
    assert turns.longest == len(start) + 40 + len(between.tokens) + 200


def test_reasoning_is_switched_off_where_a_template_can(chat_tokenizer):
    tokenizer = copy.deepcopy(chat_tokenizer)
    off = "{% if enable_thinking is defined and not enable_thinking %}<off>{% endif %}"
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant\n", "assistant\n" + off)
    (_, between, _) = turns_of(tokenizer, 4, 4).script
    assert tokenizer.decode(between.tokens).endswith("<off>")


def test_base_model_continues_from_bos(base_tokenizer):
    turns = turns_of(base_tokenizer, 40, 200)
    assert turns.starts == ((256,),)
    assert turns.script == (Free(200, frozenset({256, 257, 258}), frozenset({256})),)


def test_base_model_without_bos_continues_from_a_common_token(base_tokenizer):
    tokenizer = copy.deepcopy(base_tokenizer)
    tokenizer.bos_token = None
    turns = turns_of(tokenizer, 40, 200)
    letters = {tokenizer.decode(start) for start in turns.starts}
    assert {"A", "z"} <= letters and "<|im_end|>" not in letters and "1" not in letters
    texts = turns.texts(20, torch.Generator().manual_seed(0))
    assert len({tuple(text.tokens) for text in texts}) > 5
    assert len(common_tokens(tokenizer)) == len(turns.starts)


def test_template_that_changes_the_message(chat_tokenizer):
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.name_or_path = "shouting-model"
    tokenizer.chat_template = tokenizer.chat_template.replace("['content']", "['content'] | upper")
    with pytest.raises(RazorError, match="shouting-model"):
        turns_of(tokenizer, 4, 4)


def test_a_mark_of_the_template_is_no_beginning_of_text(chat_tokenizer):
    tokenizer = copy.deepcopy(chat_tokenizer)
    assert opening(tokenizer) == (tokenizer.bos_token_id,)
    assert text_turns(tokenizer, 9).starts == ((tokenizer.bos_token_id,),)
    tokenizer.bos_token = "<|im_start|>"
    assert opening(tokenizer) == ()
    starts = {tokenizer.decode(start) for start in text_turns(tokenizer, 9).starts}
    assert "<|im_start|>" not in starts and "A" in starts
    assert text_turns(tokenizer, 9, [(1, 2)]).starts == ((1, 2),)
