from __future__ import annotations

import pytest
import torch

from razor.data.sampling import Fixed, Free, Sampling, Text, write
from razor.data.temperature import Ramp

STOP = frozenset({258})
LIKELIEST = Sampling(0.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def written(model, starts, script, sampling=LIKELIEST, seed=0, **options):
    texts = [Text(start, script) for start in starts]
    write(model, texts, sampling, generator(seed), 259, **options)
    return texts


def test_likeliest_tokens_equal_those_of_generate(tiny_model):
    starts = [[1, 2, 3], [9, 8, 7], [1, 2, 3]]
    ours = written(tiny_model, starts, [Free(20, frozenset())])
    theirs = tiny_model.generate(
        torch.tensor(starts),
        max_new_tokens=20,
        do_sample=False,
        eos_token_id=None,
        suppress_tokens=list(range(259, 272)),
    )
    assert [text.tokens for text in ours] == theirs.tolist()


def test_rows_of_all_lengths_are_what_they_would_be_alone(tiny_model):
    """Rows that end are taken out of the batch; the others must not notice."""
    starts = [[i, i + 1] for i in range(10)]
    greedy = written(tiny_model, starts, [Free(30, frozenset())])
    stops = frozenset(text.tokens[2 + 3 * i] for i, text in enumerate(greedy))
    script = [Free(30, stops), Fixed((5, 6, 7)), Free(12, stops, stops)]
    together = written(tiny_model, starts, script)
    assert len({len(text.tokens) for text in together}) > 2
    for start, text in zip(starts, together, strict=True):
        (alone,) = written(tiny_model, [start], script)
        assert alone.tokens == text.tokens and alone.spans == text.spans and text.done


def test_starts_of_unequal_length_do_not_notice_each_other(tiny_model):
    script = [Free(12, frozenset()), Fixed((5, 6)), Free(8, frozenset())]
    starts = [[9], [1, 2, 3, 4, 5, 6, 7], [8, 9, 10], [9]]
    together = written(tiny_model, starts, script)
    for start, text in zip(starts, together, strict=True):
        (alone,) = written(tiny_model, [start], script)
        assert (
            alone.tokens == text.tokens and alone.spans == text.spans and len(text.tokens) == len(start) + 22
        )


def test_the_order_of_draws(tiny_model):
    """By the book, without cache or padding: a number a step for every row that is still in the batch."""
    stops, sampling = frozenset(range(200, 259)), Sampling(1.3, 0.9)
    script = [Free(15, stops), Fixed((5, 6, 7)), Free(20, stops, stops)]
    starts = [[i, i + 1, i] for i in range(12)]
    ours = written(tiny_model, starts, script, sampling, seed=3)
    live = theirs = [Text(start, script) for start in starts]
    draws = generator(3)
    while not all(text.done for text in live):
        with torch.no_grad():
            logits = torch.cat([tiny_model(torch.tensor([t.tokens])).logits[:, -1, :259] for t in live])
        for text, token in zip(live, sampling.draw(logits, draws).tolist(), strict=True):
            if not text.done:
                text.take(token)
        writing = [text for text in live if not text.done]
        live = writing if len(writing) < 0.8 * len(live) else live
    assert [t.tokens for t in ours] == [t.tokens for t in theirs]
    assert len({len(t.tokens) for t in ours}) > 4


def test_scripts():
    text = Text([1], [Free(3, STOP), Fixed((258, 50, 51)), Free(2, STOP, STOP)])
    used = [text.take(token) for token in (7, 258, 99, 99, 8, 258)]
    assert text.done and used == [True, True, False, False, True, True]
    assert text.tokens == [1, 7, 258, 50, 51, 8, 258]
    assert text.spans == [(1, 2), (5, 7)]
    cut = Text([1], [Free(2, STOP), Fixed((50,)), Free(1, STOP)])
    for token in (7, 8, 99, 9):
        cut.take(token)
    assert cut.done and cut.tokens == [1, 7, 8, 50, 9] and cut.spans == [(1, 3), (4, 5)]
    with pytest.raises(ValueError):
        Text([1], [Free(1, STOP), Free(1, STOP)])


def test_seed_decides_the_text_and_progress_counts_it(tiny_model):
    script, sampling = [Free(10, STOP), Fixed((3, 4)), Free(10, STOP)], Sampling(1.0, 0.9)
    counted: list[int] = []
    first = written(tiny_model, [[1, 2]] * 6, script, sampling, progress=counted.append)
    second = written(tiny_model, [[1, 2]] * 6, script, sampling)
    other = written(tiny_model, [[1, 2]] * 6, script, sampling, seed=1)
    assert [t.tokens for t in first] == [t.tokens for t in second] != [t.tokens for t in other]
    assert len({tuple(t.tokens) for t in first}) == 6
    assert sum(counted) >= sum(b - a for t in first for a, b in t.spans)


def test_training_mode_is_left_as_it_was(tiny_model):
    tiny_model.train()
    try:
        written(tiny_model, [[1]], [Free(2, STOP)])
        assert tiny_model.training
    finally:
        tiny_model.eval()


def test_padding_of_the_output_layer_is_never_drawn(tiny_model):
    texts = written(tiny_model, [[1]] * 8, [Free(40, frozenset())], Sampling(5.0, 1.0, 272))
    assert max(max(text.tokens) for text in texts) < 259


def test_a_ramp_heats_each_row_by_its_place():
    probabilities = torch.tensor([0.1, 0.6, 0.3])
    logits = probabilities.log().expand(20_000, -1)
    sampling = Sampling(Ramp(2.0, 0.5, 4))
    drawn = sampling.draw(logits, generator(), [0, 2, 4, 99] * 5000).view(-1, 4)
    for column, heat in enumerate((2.0, 1.25, 0.5, 0.5)):
        wanted = probabilities ** (1 / heat) / (probabilities ** (1 / heat)).sum()
        share = torch.bincount(drawn[:, column], minlength=3) / 5000
        torch.testing.assert_close(share, wanted, atol=0.025, rtol=0)


def test_a_place_is_counted_in_its_turn():
    text = Text([1], [Free(3, STOP), Fixed((50, 51)), Free(2, STOP)])
    places = []
    for token in (7, 258, 99, 8, 9):
        places.append(text.place)
        text.take(token)
    assert places == [0, 1, 0, 0, 1] and text.done and text.place == 0 and text.turn is None


def test_draws_follow_the_nucleus():
    probabilities = torch.tensor([0.05, 0.4, 0.3, 0.2, 0.05])
    logits = probabilities.log().expand(20_000, -1)
    for sampling, wanted in [
        (Sampling(1.0, 1.0), probabilities),
        (Sampling(1.0, 0.65), torch.tensor([0, 0.4, 0.3, 0, 0]) / 0.7),
        (Sampling(1.0, 0.75), torch.tensor([0, 0.4, 0.3, 0.2, 0]) / 0.9),
        (Sampling(1.0, 1.0, top_k=2), torch.tensor([0, 0.4, 0.3, 0, 0]) / 0.7),
        (Sampling(0.5, 1.0), probabilities**2 / (probabilities**2).sum()),
        (Sampling(0.0), torch.tensor([0, 1.0, 0, 0, 0])),
    ]:
        drawn = sampling.draw(logits, generator())
        share = torch.bincount(drawn, minlength=5) / len(drawn)
        torch.testing.assert_close(share, wanted, atol=0.015, rtol=0)
        assert ((wanted == 0) <= (share == 0)).all()
