from __future__ import annotations

import pytest

from razor.data.document import from_text
from razor.data.sources.base import TextSource
from razor.data.sources.source_mix import SourceMix
from razor.errors import RazorError


class Text(TextSource):
    def __init__(self, text):
        self.text = text

    def documents(self, tokenizer, teacher=None):
        return [from_text(tokenizer, self.text)]


def mix(*weights, **options):
    parts = {
        name: {"source": Text(name), "weight": weight} for name, weight in zip("abc", weights, strict=False)
    }
    return SourceMix(parts, **options)


@pytest.mark.parametrize(
    ("weights", "options", "available", "wanted"),
    [
        ((None, None), {}, [7, 9], [7, 9]),
        ((1, 1), {}, [100, 300], [100, 100]),
        ((1, 3), {}, [100, 300], [100, 300]),
        ((0.2, 0.8), {}, [100, 100], [25, 100]),
        ((1, 1, 2), {}, [50, 60, 70], [35, 35, 70]),
        ((1, 1), {"tokens": 50}, [100, 300], [25, 25]),
        ((1, 1), {"tokens": 500, "when_short": "repeat"}, [100, 300], [250, 250]),
    ],
)
def test_tokens_of_each_part(weights, options, available, wanted):
    assert mix(*weights, **options).wanted(available) == wanted


def test_what_is_short_is_named():
    with pytest.raises(RazorError, match=r"part 'a' .* has 100 tokens, .*=500 asks 250 .*repeat"):
        mix(1, 1, tokens=500).wanted([100, 300])
    with pytest.raises(RazorError, match="part 'b' of the mix has nothing"):
        mix(1, 1).wanted([100, 0])


def test_documents_of_all_parts(base_tokenizer):
    found = mix(1, 5).documents(base_tokenizer)
    assert [base_tokenizer.decode(d.tokens[:1]) for d in found] == ["a", "b"]


GOOD = {"source": Text("x"), "weight": 1}


@pytest.mark.parametrize(
    ("parts", "options", "told"),
    [
        ({}, {}, "parts is empty"),
        ([GOOD], {}, "parts is empty"),
        ({"a": Text("x")}, {}, r"parts\.a must be"),
        ({"a": {"weight": 1}}, {}, r"parts\.a must be"),
        ({"a": GOOD | {"wieght": 2}}, {}, "'wieght'.*Did you mean 'weight'"),
        ({"a": GOOD | {"weight": 0}}, {}, r"parts\.a\.weight=0 must be"),
        ({"a": GOOD | {"weight": "much"}}, {}, r"weight=much must be"),
        ({"a": GOOD | {"weight": True}}, {}, r"weight=True must be"),
        ({"a": GOOD, "b": {"source": Text("y")}}, {}, "every part a weight, or none"),
        ({"a": {"source": Text("y")}}, {"tokens": 5}, "shared out by weight"),
        ({"a": {"source": SourceMix({"b": GOOD})}}, {}, "is a mix itself"),
        ({"a": GOOD}, {"tokens": 0}, "tokens=0"),
        ({"a": GOOD}, {"tokens": 1.5}, "tokens=1.5"),
        ({"a": GOOD}, {"when_short": "again"}, "when_short='again'.*Choices: error, repeat"),
    ],
)
def test_bad_options(parts, options, told):
    with pytest.raises(RazorError, match=told) as error:
        SourceMix(parts, **options)
    assert "\n" not in str(error.value)
