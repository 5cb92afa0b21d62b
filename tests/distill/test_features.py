"""Hidden states: which layers are compared, what their difference is, and the map between two widths."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from razor.distill import AdaptiveFeatures, Batch, Features, FixedFeatures, Objective, Shape, Trace
from razor.errors import RazorError
from razor.spec import from_spec, spec_of

WIDTH, LAYERS = 12, 6
LENGTHS = ((9, 4), (6,))


def shape(layers: int = LAYERS, width: int = WIDTH) -> Shape:
    return Shape("Tiny", layers, width, heads=4, kv_heads=2, head_dim=3)


def fitted(loss: Any, student: Shape | None = None, teacher: Shape | None = None) -> Any:
    loss.fit(student or shape(), teacher or shape())
    return loss


def trace_of(states: dict[int, torch.Tensor]) -> Trace:
    return Trace(states[max(states)], torch.zeros(1, WIDTH), None, states)


def busy(batch: Batch, seed: int = 0) -> dict[int, torch.Tensor]:
    """Hidden states of a teacher whose layers work differently hard."""
    torch.manual_seed(seed)
    x = torch.randn(*batch.labels.shape, WIDTH)
    found = {0: x}
    for index, strength in enumerate((0.1, 2.0, 0.5, 0.05, 1.0, 0.3), start=1):
        x = x * (1 + 0.2 * index) + strength * torch.randn_like(x)
        found[index] = x
    return found


def ranked(name: str, found: dict[int, torch.Tensor], batch: Batch) -> list[int]:
    """Most active first, one token at a time and in float64."""
    scores = {}
    for index in range(1, LAYERS + 1):
        pairs = [
            (found[index - 1][b, t].double(), found[index][b, t].double())
            for b, t in (batch.documents >= 0).nonzero().tolist()
        ]
        each = {
            "cosine": [-(x @ y) / (x.norm() * y.norm()) for x, y in pairs],
            "l2": [(y - x).square().sum().sqrt() for x, y in pairs],
            "variance": [y.var() for _, y in pairs],
        }[name]
        scores[index] = float(sum(each)) / len(each)
    return sorted(scores, key=lambda i: -scores[i])


@pytest.mark.parametrize("ranking", ["cosine", "l2", "variance"])
@pytest.mark.parametrize("top", [1, 3, LAYERS])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_layers_are_chosen_by_the_teachers_activity(make_batch, ranking, top, seed):
    batch = make_batch(LENGTHS)
    found = busy(batch, seed)
    chosen = fitted(AdaptiveFeatures(top, ranking)).select(trace_of(found), batch)
    assert chosen == ranked(ranking, found, batch)[:top]


@pytest.mark.parametrize("ranking", ["cosine", "l2", "variance"])
def test_padding_does_not_count(make_batch, ranking):
    batch = make_batch(LENGTHS)
    found, loss = busy(batch), fitted(AdaptiveFeatures(3, ranking))
    chosen, padding = loss.select(trace_of(found), batch), batch.documents < 0
    assert padding.sum() > 5
    for index in found:
        found[index][padding] = 100.0 * torch.randn(int(padding.sum()), WIDTH) * (index + 1)
    found[2][padding] = float("nan")
    assert loss.select(trace_of(found), batch) == chosen


def test_the_rankings_differ(make_batch):
    batch = make_batch(LENGTHS)
    trace = trace_of(busy(batch))
    found = [fitted(AdaptiveFeatures(LAYERS, r)).select(trace, batch) for r in ("cosine", "l2", "variance")]
    assert len({tuple(layers) for layers in found}) > 1


def test_bf16_states_are_ranked_in_fp32(make_batch):
    batch = make_batch(LENGTHS)
    found = {index: state.bfloat16() for index, state in busy(batch).items()}
    loss = fitted(AdaptiveFeatures(3))
    assert loss.select(trace_of(found), batch) == ranked("cosine", found, batch)[:3]


@pytest.mark.parametrize("loss", [AdaptiveFeatures(), FixedFeatures()])
def test_the_loss_is_the_mean_squared_error_over_the_width(make_batch, loss):
    batch = make_batch(LENGTHS)
    torch.manual_seed(0)
    student = torch.randn(*batch.labels.shape, WIDTH).bfloat16()
    teacher = student + 0.01 * torch.randn(student.shape).bfloat16()  # a difference that bf16 would round
    found = fitted(loss).per_token(student, teacher, batch)
    wanted = [
        sum((float(a) - float(b)) ** 2 for a, b in zip(student[b, t], teacher[b, t], strict=True)) / WIDTH
        for b, t in batch.valid.nonzero().tolist()
    ]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("loss", [AdaptiveFeatures(relative=True), FixedFeatures(relative=True)])
def test_a_relative_error_does_not_know_how_large_states_are(make_batch, loss):
    batch = make_batch(LENGTHS)
    torch.manual_seed(0)
    student, teacher = torch.randn(2, *batch.labels.shape, WIDTH, dtype=torch.float64)
    by_token = torch.rand(*batch.labels.shape, 1, dtype=torch.float64) * 1000 + 0.1
    plain = fitted(loss).per_token(student, teacher, batch)
    torch.testing.assert_close(loss.per_token(student * by_token, teacher * by_token, batch), plain)
    wanted = (student - teacher).square().sum(-1) / teacher.square().sum(-1)
    torch.testing.assert_close(plain, wanted[batch.valid])
    assert loss.per_token(student, torch.zeros_like(teacher), batch).isfinite().all()


@pytest.mark.parametrize("width", [WIDTH, 7])
def test_the_gradient_is_that_of_the_formula(make_batch, width):
    batch = make_batch(LENGTHS)
    loss: Any = fitted(FixedFeatures(projection="linear"), shape(width=width)).double()
    student = torch.randn(*batch.labels.shape, width, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(*batch.labels.shape, WIDTH, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, _: loss.per_token(x, teacher, batch), (student, loss.map))


def test_fixed_layers_count_from_either_end():
    loss = fitted(FixedFeatures([0, 2, -1, -3]))
    assert loss.teacher_layers() == {0, 2, 4, LAYERS}
    assert fitted(FixedFeatures("all")).teacher_layers() == set(range(LAYERS + 1))
    assert fitted(FixedFeatures()).teacher_layers() == {LAYERS}


@pytest.mark.parametrize("weights", [None, [3, 1, 0.5], [0, 1, 1]])
def test_layers_have_weights(make_batch, make_trace, weights):
    batch = make_batch(LENGTHS)
    student, teacher = make_trace(batch, 1, layers=LAYERS), make_trace(batch, 2, layers=LAYERS)
    objective = Objective({"f": FixedFeatures([1, 3, -1], weights)}, {"f": 2.0})
    objective.fit(shape(), shape())
    seen = objective.observe(teacher, batch)
    total, parts = objective(student, teacher, batch, seen)
    means, given = [], weights or [1, 1, 1]
    for layer in (1, 3, LAYERS):
        gap = (student.states[layer] - teacher.states[layer]).detach().double().square().mean(-1)
        documents = batch.documents[batch.valid].unique()
        means.append(sum(float(gap[batch.valid & (batch.documents == d)].mean()) for d in documents))
        means[-1] /= len(documents)
    wanted = sum(w * m for w, m in zip(given, means, strict=True)) / sum(given)
    assert parts["f"] == pytest.approx(wanted, rel=1e-5)
    assert float(total.detach()) == pytest.approx(2 * wanted, rel=1e-5)
    assert (1 in seen.needs.states) == (given[0] > 0)  # a layer of weight 0 is not recorded


def test_adaptive_features_drop_what_they_do_not_compare(make_batch, make_trace):
    batch, teacher = make_batch(LENGTHS), None
    teacher = make_trace(batch, 2, layers=LAYERS)
    objective = Objective({"a": AdaptiveFeatures(2)}, {"a": 1.0})
    objective.fit(shape(), shape())
    assert objective.teacher_needs().states == set(range(LAYERS + 1))
    seen = objective.observe(teacher, batch)
    kept = teacher.only(seen.compared)
    assert set(kept.states) == set(seen.layers["a"]) and len(kept.states) == 2
    student = make_trace(batch, 1, layers=LAYERS)
    assert objective(student, kept, batch, seen)[1] == objective(student, teacher, batch, seen)[1]


def test_nothing_to_learn_is_zero_and_equal_states_have_no_loss(make_batch):
    batch = make_batch([[2, 1], [3]], prompt=5)
    loss, state = fitted(FixedFeatures()), torch.randn(2, 14, WIDTH)
    assert loss.per_token(state, state, batch).shape == (0,)
    assert not loss.per_token(state, state, make_batch(LENGTHS)).any()


@pytest.mark.parametrize(
    ("student", "pairs"),
    [
        (6, {0: 0, 1: 1, 4: 4, 6: 6}),
        (3, {0: 0, 1: 1, 2: 1, 4: 2, 5: 2, 6: 3}),  # what stands after the final norm does in both
        (12, {0: 0, 1: 2, 3: 6, 5: 10, 6: 12}),
        (1, {0: 0, 1: 1, 6: 1}),
    ],
)
def test_layers_of_another_number_are_compared_at_the_same_depth(student, pairs):
    loss = fitted(FixedFeatures("all"), shape(student))
    assert {layer: loss.counterpart(layer) for layer in pairs} == pairs


def test_other_widths_want_a_projection():
    words = r"hidden states of Tiny are 7 wide, those of Tiny 12: projection=linear"
    for loss in (AdaptiveFeatures(), FixedFeatures()):
        with pytest.raises(RazorError, match=words):
            loss.fit(shape(width=7), shape())
        loss.fit(shape(), shape())
        assert loss.map is None and not list(loss.parameters())


def test_the_projection_is_made_once_and_always_alike():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        one = fitted(AdaptiveFeatures(projection="linear"), shape(width=7))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    two = fitted(FixedFeatures(projection="linear"), shape(width=7))
    assert one.map.dtype == torch.float32 and one.map.shape == (WIDTH, 7) and torch.equal(one.map, two.map)
    assert one.map.requires_grad and float(one.map.detach().var()) == pytest.approx(1 / 7, rel=0.3)
    with torch.no_grad():
        one.map.add_(1.0)
    learned, parameter = one.map.detach().clone(), one.map
    one.fit(shape(width=7), shape())
    assert one.map is parameter and torch.equal(one.map, learned)  # what was learned stays
    one.fit(shape(width=5), shape())
    assert one.map.shape == (WIDTH, 5)
    same = fitted(FixedFeatures(projection="linear"))
    assert torch.equal(same.map, torch.eye(WIDTH))


def test_the_projection_is_applied_in_fp32(make_batch):
    batch = make_batch(LENGTHS)
    loss = fitted(FixedFeatures(projection="linear"), shape(width=7))
    student = torch.randn(*batch.labels.shape, 7).bfloat16()
    teacher = torch.randn(*batch.labels.shape, WIDTH).bfloat16()
    wanted = student[batch.valid].double() @ loss.map.detach().double().T - teacher[batch.valid].double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss.per_token(student, teacher, batch)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted.square().mean(-1), rtol=1e-5, atol=1e-6)


def test_an_unfitted_loss_says_so(make_batch):
    batch, state = make_batch(LENGTHS), torch.randn(2, 14, WIDTH)
    for loss in (AdaptiveFeatures(projection="linear"), FixedFeatures(projection="linear")):
        for call in (loss.teacher_layers, lambda: loss.per_token(state, state, batch)):  # noqa: B023
            with pytest.raises(RazorError, match=r"Features does not know its models yet.*Distiller"):
                call()


@pytest.mark.parametrize(
    "loss",
    [
        AdaptiveFeatures(2, "l2", "linear"),
        FixedFeatures([1, -1], [0.5, 2.0]),
        FixedFeatures("all"),
    ],
)
def test_a_description_gives_the_same_loss(loss):
    again = from_spec(Features, spec_of(loss), "loss")
    assert spec_of(again) == spec_of(loss) and type(again) is type(loss)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AdaptiveFeatures(0), "top=0 must be at least 1"),
        (lambda: AdaptiveFeatures(ranking="cosin"), "ranking='cosin'.*cosine"),
        (lambda: AdaptiveFeatures(projection="conv"), "projection='conv'.*linear"),
        (lambda: fitted(AdaptiveFeatures(7)), "top=7, but Tiny has 6 layers"),
        (lambda: FixedFeatures([]), r"layers=\[\] must be 'all' or a list"),
        (lambda: FixedFeatures("last"), "layers='last' must be 'all' or a list"),
        (lambda: FixedFeatures([1, 1]), "names a layer twice"),
        (lambda: FixedFeatures([1.5]), "1.5 is no whole number"),
        (lambda: fitted(FixedFeatures([6, -1])), "names layer 6 of 6 twice"),
        (lambda: fitted(FixedFeatures([7])), "Tiny has 6 layers"),
        (lambda: fitted(FixedFeatures([-7])), "Tiny has 6 layers"),
        (lambda: FixedFeatures([1, 2], [1.0]), r"weights=\[1.0\] must be one number for each"),
        (lambda: FixedFeatures("all", [1.0, 1.0, 1.0]), "one number for each"),
        (lambda: FixedFeatures([1, 2], [1.0, -1.0]), "must be 0 or more"),
        (lambda: FixedFeatures([1, 2], [0.0, 0.0]), "not all 0"),
    ],
)
def test_what_is_wrong_is_said(make, words):
    with pytest.raises(RazorError, match=words):
        make()


def test_an_error_names_the_loss():
    objective = Objective({"afd": AdaptiveFeatures(9)}, {"afd": 1.0})
    with pytest.raises(RazorError, match="The loss 'afd': top=9"):
        objective.fit(shape(), shape())
