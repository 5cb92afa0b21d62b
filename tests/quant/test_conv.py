"""Convolutions, and every other layer with a forward pass of its own, on quantized numbers."""

from __future__ import annotations

import copy
import io
import shutil
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from razor.quant import (
    Float16,
    Format,
    Integer,
    LearnedScale,
    MatrixView,
    Placement,
    Plan,
    RowMix,
    Ternary,
    packed_state,
    quantize_modules,
    swap_in_coded,
)

MIXED = RowMix(Integer(4, "row"), Ternary("row"), 0.5)
CONVS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(8, 6, 3, stride=2, padding=1), (2, 8, 11)),
    "conv2d": (lambda: nn.Conv2d(8, 6, (3, 1), padding=(2, 0), dilation=(2, 1)), (2, 8, 9, 5)),
    "conv3d": (lambda: nn.Conv3d(8, 6, 2, bias=False), (2, 8, 4, 5, 3)),
    "grouped": (lambda: nn.Conv2d(8, 12, 3, groups=4, padding="same"), (2, 8, 6, 6)),
    "depthwise": (lambda: nn.Conv1d(8, 8, 4, groups=8), (2, 8, 9)),
    "reflected": (lambda: nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"), (2, 8, 6, 6)),
    "circular": (lambda: nn.Conv1d(8, 6, 3, padding=2, padding_mode="circular", bias=False), (2, 8, 9)),
    "unbatched": (lambda: nn.Conv2d(8, 6, 3), (8, 6, 6)),
}


def quantized(
    layer: nn.Module, weights: Format, activations: Format | None = None, dtype: torch.dtype = torch.float32
) -> Any:
    model = nn.Sequential(layer)
    quantize_modules(model, Plan({"0": Placement(weights, activations)}), dtype)
    return model


def by_hand(layer: Any, x: Tensor, weights: Format, activations: Format | None) -> Tensor:
    """A plain layer with its numbers overwritten; the input quantized position by position, in Python."""
    plain = copy.deepcopy(layer)
    with torch.no_grad():
        plain.weight.copy_(weights.quantize(layer.weight.flatten(1)).view_as(layer.weight))
        if plain.bias is not None:
            plain.bias.copy_(plain.bias.bfloat16())
        if activations is not None:
            channels = x.ndim - layer.weight.ndim + 1
            columns = x.movedim(channels, 0).flatten(1)  # [channels, positions]
            columns = torch.stack([activations.quantize(columns[:, i]) for i in range(columns.shape[1])], 1)
            x = columns.view(x.movedim(channels, 0).shape).movedim(0, channels)
        return plain(x)


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize("weights", [MIXED, Integer(4, "row")], ids=["mixed", "int4"])
@pytest.mark.parametrize("activations", [None, Integer(8, 4)], ids=["a16", "a8"])
def test_a_convolution_is_the_plain_one_on_quantized_numbers(name, weights, activations):
    torch.manual_seed(0)
    layer, x = CONVS[name][0](), torch.randn(CONVS[name][1])
    expected = by_hand(layer, x, weights, activations)
    model = quantized(layer, weights, activations)
    torch.testing.assert_close(model(x), expected)
    assert model[0].weight.dtype == torch.float32 and model(x).shape == expected.shape


@pytest.mark.parametrize("name", ["conv1d", "conv2d", "conv3d"])
def test_a_position_changes_no_other(name):
    """Each position of the input has scales of its own: a kernel of one place keeps them apart."""
    kind = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d}[name]
    model = quantized(kind(8, 6, 1), Integer(4, 8), Integer(4, 8))
    x = torch.randn(2, 8, *(4, 3, 2)[: 1 + list(CONVS).index(name)])
    changed = x.clone()
    changed[1].flatten(1)[:, -1] *= 100
    before, after = model(x).flatten(2), model(changed).flatten(2)
    assert torch.equal(before[0], after[0]) and torch.equal(before[1, :, :-1], after[1, :, :-1])
    assert not torch.equal(before[1, :, -1], after[1, :, -1])


def test_settings_and_parameters_are_kept():
    layer: Any = nn.Conv2d(8, 12, 3, 2, 1, 1, 4, padding_mode="zeros")
    weight, bias = layer.weight, layer.bias
    model = quantized(layer, Integer(4, "row"))
    after = model[0]
    assert isinstance(after, nn.Conv2d) and type(after).__name__.endswith("QuantConv2d")
    assert (after.stride, after.padding, after.dilation, after.groups) == ((2, 2), (1, 1), (1, 1), 4)
    parameters = dict(model.named_parameters())
    assert parameters["0.weight"] is weight and bias in set(parameters.values())


def test_gradients_are_those_of_the_plain_layer():
    layer, x = nn.Conv1d(8, 6, 3), torch.randn(2, 8, 9, requires_grad=True)
    latent, bias = layer.weight, layer.bias.detach().bfloat16().float().requires_grad_()
    weight = Integer(4, "row").quantize(latent.flatten(1)).view_as(latent).detach().requires_grad_()
    F.conv1d(x, weight, bias).square().sum().backward()
    wanted, x.grad = (x.grad, weight.grad, bias.grad), None
    model = quantized(layer, Integer(4, "row"))
    model(x).square().sum().backward()
    found = (x.grad, latent.grad, model[0]._parameters["bias"].grad)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_a_learned_scale_learns_through_a_view():
    model = quantized(nn.Conv2d(4, 6, 3, bias=False), LearnedScale(Integer(4, "row")))
    model(torch.randn(2, 4, 6, 6)).square().sum().backward()
    names = dict(model.named_parameters())
    scale = names.pop("0.weights.format.log_scale")
    assert scale.shape[0] == 6 and scale.grad is not None and scale.grad.abs().sum() > 0
    assert set(names) == {"0.weight"} and names["0.weight"].grad.shape == (6, 4, 3, 3)


def test_transformers_conv1d_groups_its_inputs():
    torch.manual_seed(0)
    layer = Conv1D(6, 16)
    with torch.no_grad():
        layer.bias.uniform_(-1, 1)
    weight, x = layer.weight.detach().clone(), torch.randn(2, 5, 16)
    model = quantized(layer, Ternary(8), Integer(8, 8))
    rows = Ternary(8).quantize(weight.T.contiguous())  # [out, in]
    expected = F.linear(Integer(8, 8).quantize(x), rows, layer.bias)
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(model[0].weight, rows.T)
    model(x).sum().backward()
    assert model[0]._parameters["bias"].grad is not None
    assert model[0]._parameters["weight"].grad.shape == (16, 6)


class Scaled(nn.Embedding):
    """As Gemma's: what it looks up is scaled in the dtype of the weight."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.scale = nn.Buffer(torch.tensor(5.1), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) * self.scale.to(self.weight.dtype)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * F.linear(x, self.weight, self.bias)  # reads the weight itself, as Falcon's does


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_of_their_own_kind_keep_what_they_do(dtype):
    embedding, linear = Scaled(10, 16), Doubled(16, 6, bias=False)
    table, tokens = embedding.weight, torch.arange(10)
    model: Any = nn.Sequential(embedding, linear)
    plan = Plan({"0": Placement(Integer(4, 8)), "1": Placement(Ternary(8), Integer(8, 8))})
    wanted = Integer(4, 8).quantize(table, dtype)[tokens] * torch.tensor(5.1).to(dtype)
    wanted = 2 * F.linear(Integer(8, 8).quantize(wanted), Ternary(8).quantize(linear.weight, dtype))
    quantize_modules(model, plan, dtype)
    out = model(tokens)
    assert out.dtype == dtype and torch.equal(out, wanted)
    assert model[0].weight is table  # outside of a pass: to be compared and tied
    assert isinstance(model[0], Scaled) and isinstance(model[1], Doubled)
    out.float().sum().backward()
    assert table.grad.abs().sum() > 0


def test_a_tied_table_is_quantized_once():
    model: Any = nn.Sequential(Scaled(10, 16), nn.Linear(16, 10, bias=False))
    model[1].weight = model[0].weight
    quantize_modules(model, Plan(dict.fromkeys("01", Placement(Integer(4, 8)))), torch.float32)
    assert model[0].weights is model[1].weights and model[0].weight is model[1].weight
    assert list(model.state_dict()) == ["0.weight", "1.weight"]


def test_an_error_while_reading_does_not_lend_the_latent_weight():
    """nn.Module answers an AttributeError in a property by looking among the parameters."""
    model = quantized(nn.Conv1d(8, 6, 1, bias=False), Integer(4, 8))
    model[0].weights.format.encode = model[0].weights.format.fake = lambda *_: None.missing  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="Reading 'weight' of a Conv1d failed"):
        model(torch.randn(1, 8, 3))


def net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.Conv2d(16, 16, 3, groups=16),
        nn.Flatten(1, -1),
        Conv1D(24, 64),
        Doubled(24, 8),
    )


PLAN = Plan(
    {
        "0": Placement(RowMix(Integer(4, 24), Ternary(24), 0.5), Integer(8, 8)),
        "2": Placement(LearnedScale(Integer(4, "row")), Integer(8, "row")),
        "4": Placement(RowMix(Integer(4, 8), Ternary(8), 0.25, "error"), Integer(8, 8)),
        "5": Placement(Integer(8, 8)),
    }
)


@torch.enable_grad()
def student() -> tuple[Any, Tensor]:
    model, x = quantize_modules(net(), PLAN, torch.float32), torch.randn(3, 8, 4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):  # running statistics and learned scales away from where they began
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), x


@torch.no_grad()
@pytest.mark.parametrize("keep", [True, False])
def test_a_packed_network_computes_the_same(keep):
    model, x = student()
    state = packed_state(model, PLAN)
    with torch.device("meta"):
        coded = net()
    swap_in_coded(coded, PLAN, torch.float32, "decoded" if keep else "packed")
    coded.load_state_dict(state, assign=True)
    for parameter in coded.parameters():
        parameter.data = parameter.data.float()
    expected = model(x)
    assert torch.equal(coded.eval()(x), expected) and torch.equal(coded(x), expected)
    assert set(coded.state_dict()) == set(state) and all(t.device.type == "cpu" for t in state.values())
    assert {"1.running_mean", "1.num_batches_tracked", "1.weight", "0.coded.high_codes", "4.coded.map"} < set(
        state
    )
    assert torch.equal(coded[0].weight, model[0].weight) and coded[2].weight.shape == (16, 1, 3, 3)


@torch.no_grad()
def test_quantized_on_meta_and_filled_later():
    model, x = student()
    with torch.device("meta"):
        empty = net()
    quantize_modules(empty, PLAN, torch.float32).to_empty(device="cpu")
    for tensor in empty.state_dict().values():
        tensor.zero_()
    empty.load_state_dict(model.state_dict())
    assert torch.equal(empty.eval()(x), model(x))


@torch.no_grad()
def test_a_copy_is_independent():
    model, x = student()
    expected = model(x)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), expected)
    for parameter in twin.parameters():
        parameter.mul_(-1.5).add_(0.1)
    assert not torch.equal(twin(x), expected) and torch.equal(model(x), expected)


@torch.no_grad()
def test_it_can_be_pickled():
    model, x = student()
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    again = torch.load(stream, weights_only=False)
    assert torch.equal(again(x), model(x)) and type(again[0]) is type(model[0])


@torch.no_grad()
def test_every_latent_weight_is_under_its_usual_name():
    own = {name for name in student()[0].state_dict() if not name.endswith(("log_scale", "chosen"))}
    assert own == set(net().state_dict())


def test_compiled_it_is_the_same():
    model, x = student()
    compiled = torch.compile(model, backend="inductor" if shutil.which("g++") else "aot_eager")
    outputs = [run(x) for run in (model, compiled)]
    assert torch.equal(*outputs)
    gradients = []
    for out in outputs:
        out.square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
        model.zero_grad()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_excluded_layers_are_rounded_only():
    layer = nn.Conv1d(8, 6, 3, bias=False)
    latent = layer.weight.detach().clone()
    model = quantized(layer, Float16())
    assert torch.equal(model[0].weight, latent.bfloat16().float())


def test_a_view_of_a_view_is_the_identity():
    for view, shape in (
        (MatrixView(), (4, 3, 2, 2)),
        (MatrixView(True), (4, 6)),
        (MatrixView(True, 2), (3, 4, 6)),
    ):
        weight = torch.randn(shape)
        assert torch.equal(view.back(view.matrix(weight), shape), weight)
        assert view.matrix(weight).shape == view.shape(shape)


def test_a_model_that_is_evaluated_is_quantized_for_that():
    """Its softened weights are hard, like those of a layer that was swapped."""
    model = nn.Sequential(nn.Conv1d(4, 4, 2, bias=False)).eval()
    soft = Ternary("row", anneal=0.5)
    quantize_modules(model, Plan({"0": Placement(soft)}), torch.float32)
    found = model[0].weight.detach()
    assert all(len(row.abs().unique()) <= 2 for row in found.flatten(1))
