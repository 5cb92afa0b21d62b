from __future__ import annotations

import numpy as np
import pytest

from razor.data.document import Document, from_messages, from_pair, from_text, from_turns
from razor.errors import RazorError

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "\nHello,  you "},
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "zwei ü"},
]

# As a model that reasons has it: earlier answers lose their reasoning, and a prompt can forgo it.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)


def learned(tokenizer, document: Document) -> str:
    return tokenizer.decode(document.tokens[document.response])


def with_template(tokenizer, template):
    import copy

    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    return tokenizer


def test_text_learns_everything_but_the_first_token_and_ends_with_eos(base_tokenizer):
    document = from_text(base_tokenizer, "abc")
    assert base_tokenizer.decode(document.tokens) == "abc<|endoftext|>"
    assert document.response.tolist() == [False, True, True, True]
    assert document.is_text and document.targets == 3


def test_eos_is_not_doubled(base_tokenizer):
    assert len(from_text(base_tokenizer, "abc<|endoftext|>")) == 4


def test_chat_learns_the_answers_and_their_end(chat_tokenizer):
    (document,) = from_messages(chat_tokenizer, CHAT)
    assert learned(chat_tokenizer, document) == "\nHello,  you <|im_end|>zwei ü<|im_end|>"
    whole = chat_tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert chat_tokenizer.decode(document.tokens) == whole
    assert not document.is_text


def test_a_chat_as_plain_text_learns_the_answers_and_an_end(base_tokenizer):
    document = from_turns(base_tokenizer, CHAT, "\nAnswer: ")
    assert base_tokenizer.decode(document.tokens) == (
        "Be brief.\n\nHi\nAnswer: \nHello,  you \n\n1+1?\nAnswer: zwei ü<|endoftext|>"
    )
    assert learned(base_tokenizer, document) == "\nHello,  you zwei ü<|endoftext|>"
    with pytest.raises(RazorError, match=r"roles \['system', 'user'\]"):
        from_turns(base_tokenizer, CHAT[:2], " ")


def test_chat_ending_with_the_user_learns_the_answers_before(chat_tokenizer):
    (document,) = from_messages(chat_tokenizer, CHAT[:4])
    assert learned(chat_tokenizer, document) == "\nHello,  you <|im_end|>"


def test_template_that_rewrites_history_gives_a_document_per_answer(chat_tokenizer):
    tokenizer = with_template(chat_tokenizer, FORGETFUL)
    first, second = from_messages(tokenizer, CHAT[1:])
    assert learned(tokenizer, first) == "\nHello,  you <|im_end|>"
    assert learned(tokenizer, second) == "zwei ü<|im_end|>"
    assert "<think>" not in tokenizer.decode(second.tokens).split("1+1?")[0]


def test_template_that_does_not_continue_its_prompt_is_named(chat_tokenizer):
    tokenizer = with_template(
        chat_tokenizer,
        "{% if add_generation_prompt %}other {% endif %}{% for m in messages %}{{ m.content }}{% endfor %}",
    )
    tokenizer.name_or_path = "odd-model"
    with pytest.raises(RazorError, match=r"odd-model"):
        from_messages(tokenizer, CHAT)


def test_template_that_refuses_is_named(chat_tokenizer):
    tokenizer = with_template(chat_tokenizer, "{{ raise_exception('no system please') }}")
    with pytest.raises(RazorError, match=r"no system please"):
        from_messages(tokenizer, CHAT)


def test_no_template_no_chat(base_tokenizer):
    with pytest.raises(RazorError, match=r"no chat template.*instruction-tuned"):
        from_messages(base_tokenizer, CHAT)


@pytest.mark.parametrize("messages", [CHAT[:2], []])
def test_chat_without_answer(chat_tokenizer, messages):
    with pytest.raises(RazorError, match=r"'assistant'"):
        from_messages(chat_tokenizer, messages)


def test_chat_cannot_begin_with_the_answer(chat_tokenizer):
    with pytest.raises(RazorError, match=r"begin"):
        from_messages(chat_tokenizer, CHAT[2:3])


def test_pair_with_and_without_template(chat_tokenizer, base_tokenizer):
    (chat,) = from_pair(chat_tokenizer, "Q: ", "A")
    assert learned(chat_tokenizer, chat) == "A<|im_end|>"
    (plain,) = from_pair(base_tokenizer, "Q: ", "A")
    assert base_tokenizer.decode(plain.tokens) == "Q: A<|endoftext|>"
    assert learned(base_tokenizer, plain) == "A<|endoftext|>"


def test_token_across_the_border_is_learned():
    """A tokenizer that merges the space before a word: the word still has to be predicted."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {letter: index for index, letter in enumerate("abĠ")} | {"Ġb": 3}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "b")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    (document,) = from_pair(PreTrainedTokenizerFast(tokenizer_object=inner), "a ", "b")
    assert document.tokens.tolist() == [0, 3]
    assert document.response.tolist() == [False, True]


def test_tokenizer_without_offsets_is_refused(base_tokenizer):
    class Slow:
        name_or_path = "slow-one"
        chat_template = None
        is_fast = False

    with pytest.raises(RazorError, match=r"slow-one"):
        from_pair(Slow(), "a", "b")


def test_shapes_must_agree():
    with pytest.raises(ValueError):
        Document(np.zeros(3, dtype=np.int32), np.zeros(2, dtype=np.bool_))
