"""Scores: each is what its docstring says, and an interrupted one goes on where it was."""

from __future__ import annotations

import pytest
import torch

from razor.allocate import ScoreTable, Text
from razor.allocate.measuring import measure
from razor.allocate.scores import TrueKL
from razor.allocate.subject import lost
from razor.errors import RazorError
from razor.models import record
from razor.quant import Float16
from tests.allocate.conftest import automatic, score_of

NAMES = ("weight_error", "activation_error", "fisher", "kl")
UP = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize("name", NAMES)
def test_a_table_has_every_option_of_every_target_and_is_kept(searching, name):
    search = searching(score=name)
    table = search.table()
    assert list(table.losses) == list(search.space.targets) and table.measured.score == name
    for target in search.space.targets.values():
        rows = target.site.shape[0] if table.by_rows else 1
        assert table.losses[target.name].shape == (4, rows)
        assert torch.isfinite(table.losses[target.name]).all()
    if name != "kl":  # one matrix switched may do some good
        assert all((losses >= 0).all() and losses.sum() > 0 for losses in table.losses.values())
    again = searching(score=name)
    again.load = None  # nothing is loaded to read it
    kept = again.table()
    assert kept.seconds == table.seconds
    assert all(torch.equal(losses, kept.losses[key]) for key, losses in table.losses.items())


def test_errors_are_those_of_weights_and_of_what_goes_in(searching):
    search = searching(score="activation_error")
    subject, target = search.subject, search.space.targets[UP]
    weight = subject.model.get_submodule(UP).weight.detach()
    moved = torch.stack([f.quantize(weight) - weight for f in target.formats.values()]).square()
    plain = searching(score="weight_error").table()
    assert torch.allclose(plain.losses[UP], moved.sum(-1), rtol=1e-5)
    seen = []
    module = subject.model.get_submodule(UP)
    handle = module.register_forward_pre_hook(lambda own, given: seen.append(own.quantized_input(given[0])))
    for batch in subject.batches(4):
        with torch.no_grad():
            record(subject.model, batch)
    handle.remove()
    text = torch.cat([x[batch.documents >= 0] for x, batch in zip(seen, subject.batches(4), strict=True)])
    expected = (moved * text.square().mean(0)).sum(-1)
    assert torch.allclose(search.table().losses[UP], expected, rtol=1e-4)


def test_fisher_is_the_kl_of_small_errors(searching):
    """Without other rounding, and averaged over draws, the sum of both over all matrices agrees."""
    settings = {"budget": 8.0, "options": ["int8"]}
    search = searching(**settings)
    base = search.space.base
    plain = {name: type(place)(Float16("float16"), None) for name, place in base.modules.items()}
    object.__setattr__(search.space, "base", type(base)(plain, None))
    fisher, draws = score_of("fisher"), 6
    found = dict.fromkeys(search.space.targets, 0.0)
    for seed in range(draws):
        search.subject.seed = seed
        for name, losses in fisher.measure(search.subject, ()):
            found[name] += float(losses.sum()) / draws
    true = {name: float(losses) for name, losses in TrueKL(4).measure(search.subject, ())}
    assert sum(found.values()) == pytest.approx(sum(true.values()), rel=0.3)
    ordered = sorted(found, key=found.__getitem__)
    least, most = ordered[:7], ordered[-7:]
    assert sum(true[name] for name in least) < sum(true[name] for name in most)


def test_fisher_of_a_model_whose_squares_take_too_much_memory(searching, monkeypatch):
    """Weighed after every batch it is the same number."""
    subject, whole = searching().subject, dict(score_of("fisher").measure(searching().subject, ()))
    calls = []
    monkeypatch.setattr("razor.allocate.scores.fisher.KEPT_BYTES", 0)
    monkeypatch.setattr("razor.allocate.scores.fisher.lost", lambda *given: calls.append(1) or lost(*given))
    by_batch = dict(score_of("fisher").measure(subject, ()))
    assert len(calls) == len(by_batch) * len(subject.batches(4))
    assert all(torch.allclose(by_batch[name], losses, rtol=1e-4) for name, losses in whole.items())


def test_fisher_leaves_no_gradients_and_no_hooks(searching):
    subject = searching().subject
    dict(score_of("fisher").measure(subject, ()))
    assert all(p.grad is None and not p.requires_grad for p in subject.model.parameters())
    assert not any(p._post_accumulate_grad_hooks for p in subject.model.parameters())


def test_passes_that_begin_in_the_middle_are_whole_ones(searching):
    search = searching()
    meter = search.subject.meter(2)
    for name in ("model.layers.0.self_attn.q_proj", UP, "model.layers.3.mlp.down_proj"):
        target = search.space.targets[name]
        for option in ("ternary", "int4"):
            whole = meter.kl({name: target.formats[option]})
            assert meter.switched(target, option) == pytest.approx(whole, rel=1e-6)
    first = meter.kl()
    meter.switched(search.space.targets[UP], "ternary")
    assert meter.kl() == first  # everything was put back


def test_true_kl_is_that_of_a_student_of_the_plan(searching):
    from razor.evals.held_out import score_held_out
    from razor.models import make_student

    search = searching()
    answer = search.automatic.answer(search.space, search.table())
    teacher = search.load()
    student = make_student(teacher, answer.plan, torch.float32)
    expected = score_held_out(student, teacher, search.text.held_out)
    assert search.held_out_kl(answer.formats) == pytest.approx(expected.kl, rel=1e-5)
    assert search.held_out.tokens == expected.tokens


@pytest.mark.parametrize("name", ["kl", "weight_error"])
def test_an_interrupted_score_goes_on_where_it_was(searching, tmp_path, monkeypatch, name):
    monkeypatch.setattr("razor.allocate.measuring.SECONDS", 0.0)
    two = ["ternary", "int4"]
    whole = searching(score=name, options=two).table()
    search = searching(score=name, options=two)
    kind, asked = score_of(name), []

    class Stopping(type(kind)):
        stop = 5

        def measure(self, subject, done):
            for count, each in enumerate(super().measure(subject, done)):
                if count == self.stop:
                    raise KeyboardInterrupt
                asked.append(each[0])
                yield each

    own = Stopping() if name == "weight_error" else Stopping(2)
    path = tmp_path / "own" / "scores.safetensors"
    with pytest.raises(KeyboardInterrupt):
        measure(own, search.subject, ScoreTable(whole.measured), path)
    kept = ScoreTable.load(path)
    assert list(kept.losses) == asked and len(asked) == 5
    Stopping.stop = 10**6
    done = measure(own, search.subject, kept, path)
    assert asked == list(search.space.targets)  # none twice
    assert all(torch.equal(losses, whole.losses[key]) for key, losses in done.losses.items())


def test_a_table_of_something_else_is_refused(searching, tmp_path):
    search = searching(score="weight_error")
    table, path = search.table(), tmp_path / "scores.safetensors"
    table.save(path)
    kept = ScoreTable.load(path)
    kept.check(search.space, search.model, "scores=x")
    with pytest.raises(RazorError, match="scores=x holds scores of another model"):
        kept.check(search.space, "somebody", "scores=x")
    _, other, _ = automatic(options=["ternary", "int5"])
    with pytest.raises(RazorError, match=r"has no scores of options 'int5'\. Did you mean"):
        kept.check(other, search.model, "scores=x")
    _, other, _ = automatic(model="tiny_qwen3")
    kept.check(other, search.model, "scores=x")  # shapes alike; the fingerprint tells them apart
    path.write_bytes(b"nothing of the sort")
    with pytest.raises(RazorError, match="holds no scores of razor allocate"):
        ScoreTable.load(path)
    with pytest.raises(RazorError, match="There are no scores"):
        ScoreTable.load(tmp_path / "nowhere.safetensors")


def test_what_a_score_looks_at_and_what_else_it_depends_on():
    for rows in (0, 129, "many"):
        with pytest.raises(RazorError, match=f"score.rows='?{rows}"):
            TrueKL(rows)

    class Sharper(TrueKL):
        def __init__(self, rows=8, power=2.0):
            super().__init__(rows)
            self.power = power

    assert TrueKL(4).settings == {} and Sharper(4).settings == {"power": 2.0}


def test_one_model_is_in_memory(searching):
    """The 16-bit model that true KL is against shares the measured one's weights, and answers as before."""
    search = searching()
    batch = search.text.held_out[0]
    with torch.no_grad():
        alone = record(search.load().eval(), batch).hidden
    subject = search.subject
    answer = search.automatic.answer(search.space, search.table())
    subject.switch.hold(answer.formats)
    own, others = (
        {p.data_ptr(): p.nbytes for p in model.parameters()} for model in (subject.model, subject.teacher)
    )
    assert own == others and set(own.values()) == {p.nbytes for p in search.load().parameters()}
    with torch.no_grad():
        assert torch.equal(record(subject.teacher, batch).hidden, alone)
        assert not torch.equal(record(subject.model, batch).hidden, alone)


def test_no_text_is_an_error_before_the_model_is_loaded(searching):
    search = searching()
    search.text, search.load = Text(), None
    with pytest.raises(RazorError, match="score=fisher looks at calibration text, and there is none"):
        search.table()
