"""Rows on disk: the same documents as in memory, a part of them held out, shares kept, damage noticed."""

from __future__ import annotations

import pickle
import re
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from razor.data import token_store_write, tokenizing
from razor.data.checked import shard_path
from razor.data.corpus import Corpus
from razor.data.document import Document
from razor.data.layout_write import _portions, lay_out
from razor.data.packing import fit
from razor.data.reading import Reading
from razor.data.sources.base import TextSource
from razor.data.sources.source_mix import SourceMix
from razor.data.steps import StepBatches
from razor.data.teacher_cache import rows_digest
from razor.data.token_store_write import token_store
from razor.errors import RazorError
from razor.storage import cache_dir

from .given_source import GivenTexts

LENGTH = 48
TEXTS = [f"text {n} of some length " * (1 + n % 7) for n in range(200)]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(tokenizing, "BLOCK_CHARACTERS", 500)
    monkeypatch.setattr(token_store_write, "SHARD_TOKENS", 2000)
    monkeypatch.setattr(tokenizing, "_cores", lambda: 1)


class Given(TextSource):
    """Documents that are made, not read."""

    def __init__(self, documents):
        self.given = documents

    def documents(self, tokenizer, teacher=None):
        return self.given


def build(source, tokenizer, held_out=5, seed=0, **options):
    return Corpus.build(source, tokenizer, LENGTH, held_out, seed, reading=Reading(on_disk=True, **options))


def counted(documents):
    return Counter(document.key() for document in documents)


def chat_documents(count, length=30):
    chance = np.random.default_rng(count)
    sizes = chance.integers(3, 2 * length, count)
    return [Document(chance.integers(0, 200, n), np.arange(n) >= n // 2) for n in sizes]


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("source", [GivenTexts(TEXTS), Given(chat_documents(150))], ids=["text", "chats"])
def test_the_same_documents_as_in_memory(base_tokenizer, source, pack):
    corpus = build(source, base_tokenizer, pack=pack)
    everything = fit(source.documents(base_tokenizer), LENGTH)
    train, scored = corpus.train, corpus.held_out
    secret = counted(scored.documents)
    assert secret.total() == 5 and not set(secret) - set(counted(everything))
    wanted = Counter({key: count for key, count in counted(everything).items() if key not in secret})
    assert counted(train.documents) == wanted
    assert train.tokens == sum(map(len, train.documents))
    assert train.targets == sum(d.targets for d in train.documents)
    assert [which for row in train.rows for which in row] == list(range(len(train.documents)))
    lengths = [sum(len(train.documents[which]) for which in row) for row in train.rows]
    assert train.lengths().tolist() == lengths and max(lengths) <= LENGTH
    if pack:
        assert train.tokens / (len(train) * LENGTH) > 0.9
        assert {train[i].input_ids.shape[1] for i in range(len(train))} == {LENGTH}
    else:
        assert len(train) == len(train.documents)
        assert [train[i].input_ids.shape[1] for i in range(len(train))] == lengths


def test_a_function_of_text_and_seed(base_tokenizer):
    source = GivenTexts(TEXTS)
    first = build(source, base_tokenizer)
    digest = rows_digest(first.train)
    assert rows_digest(build(source, base_tokenizer).train) == digest  # opened
    other = build(source, base_tokenizer, seed=1)
    assert rows_digest(other.train) != digest and len(other.held_out.documents) == 5
    assert counted(other.held_out.documents) != counted(first.held_out.documents)
    for path in (cache_dir() / "layouts").rglob("layout.json"):
        path.unlink()
    assert rows_digest(build(source, base_tokenizer).train) == digest  # made again


def test_an_opened_layout_reads_no_text(base_tokenizer, monkeypatch):
    source = GivenTexts(TEXTS)
    build(source, base_tokenizer)
    read = source.read
    monkeypatch.setattr("razor.data.layout_write._make", None)
    assert len(build(source, base_tokenizer).train) and source.read == read


@pytest.mark.parametrize("what", ["flipped", "gone", "layout.json"])
def test_damage_is_said_and_made_again(base_tokenizer, what, caplog):
    source = GivenTexts(TEXTS)
    digest = rows_digest(build(source, base_tokenizer).train)
    (folder,) = (cache_dir() / "layouts").iterdir()
    data = shard_path(folder, 2)
    if what == "flipped":
        data.write_bytes(data.read_bytes()[:-1] + b"\xff")
    elif what == "gone":
        data.unlink()
    else:
        (folder / what).write_text('{"shards": [{}]}')
    assert rows_digest(build(source, base_tokenizer).train) == digest
    assert sum("laid out again" in message for message in caplog.messages) == 1


def test_copies_of_held_out_documents_are_not_trained_on(base_tokenizer):
    corpus = build(GivenTexts(TEXTS * 3), base_tokenizer, held_out=40)
    kept, secret = counted(corpus.train.documents), set(counted(corpus.held_out.documents))
    assert kept and not set(kept) & secret
    everything = counted(fit(GivenTexts(TEXTS * 3).documents(base_tokenizer), LENGTH))
    assert kept == Counter({key: n for key, n in everything.items() if key not in secret})


def test_what_is_lost_is_said(base_tokenizer, caplog):
    documents = chat_documents(150)
    documents[7] = Document(np.arange(60), np.arange(60) >= 50)
    fit(documents, LENGTH)
    (line,) = caplog.messages
    assert line.endswith("1 without a token to learn left out.")
    for _ in range(2):
        caplog.clear()
        build(Given(documents), base_tokenizer)
        assert caplog.messages == [line]


@pytest.mark.parametrize(
    ("texts", "held_out", "told"),
    [
        (["a"], 1, "held_out=1 leaves nothing"),
        (["same"] * 9, 2, "repeats itself"),
        (TEXTS, -1, "held_out=-1"),
        (TEXTS, 10**6, r"leaves nothing.*documents"),
    ],
)
def test_errors(base_tokenizer, texts, held_out, told):
    with pytest.raises(RazorError, match=told):
        build(GivenTexts(texts), base_tokenizer, held_out)


def test_nothing_to_learn(base_tokenizer):
    with pytest.raises(RazorError, match="no document with a token to learn"):
        build(Given([Document(np.arange(3), [False] * 3)]), base_tokenizer, 0)
    with pytest.raises(RazorError, match="no document with a token to learn"):
        build(Given([]), base_tokenizer, 0)


def batches(rows, **options):
    run = StepBatches(rows, 6, 2, 2, seed=3, **options)
    return [run[index] for index in range(len(run))]


@pytest.mark.parametrize(("context", "order"), [("fork", "shuffled"), ("spawn", "bucketed")])
def test_workers_of_a_loader_open_files_of_their_own(base_tokenizer, order, context):
    rows = build(GivenTexts(TEXTS), base_tokenizer, pack=False, order=order).train
    wanted = batches(rows)
    assert len(pickle.dumps(rows)) < 30_000
    loader = DataLoader(
        StepBatches(rows, 6, 2, 2, seed=3), batch_size=None, num_workers=1, multiprocessing_context=context
    )
    for found, batch in zip(loader, wanted, strict=True):
        assert torch.equal(found.input_ids, batch.input_ids) and found.share == batch.share


def mixed(weights, sizes=(120, 60, 30), **options):
    parts = {}
    for name, weight, count in zip("abc", weights, sizes, strict=False):
        texts = [f"{name} says {n} things " * (1 + n % 5) for n in range(count)]
        parts[name] = {"source": GivenTexts(texts, about=[name, count]), "weight": weight}
    return SourceMix(parts, **options)


def shares(corpus, tokenizer):
    """Tokens of each part among the rows, by the letter a text begins with, and how often its pieces come."""
    tokens, times = Counter(), {}
    for document in corpus.train.documents:
        name = tokenizer.decode(document.tokens)[0]
        tokens[name] += len(document)
        times.setdefault(name, Counter())[document.key()] += 1
    return {n: tokens[n] / tokens.total() for n in sorted(tokens)}, times


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0.1, 0.9), (1, 2, 4)])
def test_shares_of_tokens_are_exact(base_tokenizer, weights, capsys):
    mix = mixed(weights)
    corpus = Corpus.build(mix, base_tokenizer, 2000, 0)  # nothing is cut, so a piece begins with its letter
    found, times = shares(corpus, base_tokenizer)
    longest = max(len(document) for document in corpus.train.documents)
    for (name, share), weight in zip(found.items(), weights, strict=True):
        assert share == pytest.approx(weight / sum(weights), abs=1.01 * longest / corpus.train.tokens), name
    assert {n for counts in times.values() for n in counts.values()} == {1}
    available = {part.name: sum(map(len, part.source.documents(base_tokenizer))) for part in mix.parts}
    whole = [
        name for name in available if found[name] * corpus.train.tokens == pytest.approx(available[name])
    ]
    assert whole  # one part is used up
    assert f"a {found['a']:.2%}" in capsys.readouterr().err


def test_parts_without_weights_are_taken_whole(base_tokenizer):
    mix = mixed((None, None))
    corpus = Corpus.build(mix, base_tokenizer, 2000, 0)
    assert counted(corpus.train.documents) == counted(mix.documents(base_tokenizer))


def test_a_short_part_is_repeated_or_an_error(base_tokenizer, capsys):
    mix = mixed((1, 1))
    tokens = 3 * sum(map(len, mix.parts[1].source.documents(base_tokenizer)))
    with pytest.raises(RazorError, match=r"The part 'b' .*when_short=repeat"):
        Corpus.build(mixed((1, 1), tokens=tokens), base_tokenizer, 2000, 0)
    corpus = Corpus.build(mixed((1, 1), tokens=tokens, when_short="repeat"), base_tokenizer, 2000, 0)
    found, times = shares(corpus, base_tokenizer)
    assert found["b"] == pytest.approx(0.5, abs=0.01)
    longest = max(len(document) for document in corpus.train.documents)
    assert corpus.train.tokens == pytest.approx(tokens, abs=1.01 * longest)  # half of one in each part
    assert set(times["b"].values()) == {1, 2} and set(times["a"].values()) == {1}
    assert re.search(r"b (49|50)\.\d\d% .* 1\.(49|50|51) of it", capsys.readouterr().err)


def test_held_out_documents_are_drawn_in_proportion(base_tokenizer):
    corpus = Corpus.build(mixed((3, 1)), base_tokenizer, 2000, 8)
    names = [base_tokenizer.decode(document.tokens)[0] for document in corpus.held_out.documents]
    assert Counter(names) == {"a": 6, "b": 2}


def test_weights_change_rows_but_not_tokens(base_tokenizer):
    Corpus.build(mixed((1, 1)), base_tokenizer, 2000, 0)
    stores = set((cache_dir() / "tokens").iterdir())
    Corpus.build(mixed((1, 2)), base_tokenizer, 2000, 0)
    assert set((cache_dir() / "tokens").iterdir()) == stores
    assert len(list((cache_dir() / "layouts").iterdir())) == 2


@pytest.mark.parametrize(("weights", "count"), [([1, 1], 5), ([1, 2, 4], 10), ([0, 1], 3), ([5, 5], 0)])
def test_portions(weights, count):
    found = _portions(weights, count)
    assert sum(found) == count
    for number, weight in zip(found, weights, strict=True):
        assert abs(number - count * weight / sum(weights)) < 1


def test_memory_for_rows_does_not_grow_with_them(base_tokenizer):
    """What is kept of a layout is a few numbers a shard."""
    sizes = []
    for count in (200, 1600):
        store = token_store(GivenTexts(TEXTS * (count // 200), about=count), base_tokenizer)
        laid = lay_out([store], list, None, LENGTH, 5, 0)
        assert len(laid.layout) > count
        sizes.append((len(pickle.dumps(laid.layout)), store.shards))
    (small, few), (large, many) = sizes
    assert (large - small) / (many - few) < 200
