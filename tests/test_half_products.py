"""16-bit products on a CPU without instructions for them: the same numbers, by another kernel."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import razor.half_products
from tests.test_benchmarks import run

CODE = """
import torch, razor.half_products
from torch.nn import functional as F

pretended = {pretended}
if pretended:
    razor.half_products.slow = lambda: True
assert razor.half_products.install() and razor.half_products.install()
torch.manual_seed(0)
for kind, unit in ((torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11), (torch.float32, 0.0)):
    a, b, bias = torch.randn(33, 70).to(kind), torch.randn(20, 70).to(kind), torch.randn(20).to(kind)
    stack, other = torch.randn(5, 12, 31).to(kind), torch.randn(5, 31, 9).to(kind)
    pairs = [
        (a @ b.T, a.double() @ b.double().T),
        (F.linear(a, b, bias), a.double() @ b.double().T + bias.double()),
        (torch.bmm(stack, other), torch.bmm(stack.double(), other.double())),
        (torch.baddbmm(stack[:, :, :9], stack, other, beta=0.5, alpha=2.0),
         0.5 * stack[:, :, :9].double() + 2 * torch.bmm(stack.double(), other.double())),
        (a[:2] @ b.T, a[:2].double() @ b.double().T),
    ]
    for found, exact in pairs[: 5 if unit else 4]:
        assert found.dtype is kind and found.shape == exact.shape
        # one rounding of the result, and what a sum of this length may lose in fp32
        assert ((found.double() - exact).abs() <= unit * exact.abs() + 1e-4).all(), (kind, exact.shape)
    into, base = torch.empty(33, 20).to(kind), torch.randn(33, 20).to(kind)
    again = base.clone()
    again.addmm_(a, b.T, beta=-1, alpha=2)
    for found, exact in (
        (torch.mm(a, b.T, out=into), a.double() @ b.double().T),
        (torch.addmm(base, a, b.T, beta=-1, alpha=2, out=torch.empty(0).to(kind)),
         2 * a.double() @ b.double().T - base.double()),
        (again, 2 * a.double() @ b.double().T - base.double()),
        (stack[:, :, :9].clone().baddbmm_(stack, other),
         stack[:, :, :9].double() + torch.bmm(stack.double(), other.double())),
    ):
        assert found.dtype is kind and ((found.double() - exact).abs() <= unit * exact.abs() + 1e-4).all()
    assert torch.equal(into, a @ b.T)
    left, right = a.clone().requires_grad_(), b.clone().requires_grad_()
    (left @ right.T).sum().backward()
    assert left.grad.dtype is kind
    wanted = right.detach().double().sum(0).expand(33, 70)
    assert ((left.grad.double() - wanted).abs() <= unit * wanted.abs() + 1e-4).all()
torch.ones(4, 4, device="meta") @ torch.ones(4, 4, device="meta")
with torch.inference_mode():
    assert (a @ b.T).isfinite().all()
print("products agree")
"""


def child(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_same_numbers_as_a_product_in_fp64() -> None:
    """Also on a CPU that needs none of it, where we pretend."""
    assert "agree" in child(CODE.format(pretended=True))


def test_importing_razor_does_it_where_it_is_slow_and_nowhere_else() -> None:
    ask = "import razor, torch, razor.half_products as h; print(bool(h._libraries) == h.slow(), h.slow())"
    said = child(ask)
    assert said.split() == ["True", str(razor.half_products.slow())]


@pytest.mark.parametrize("order", ["import torch, razor", "import razor, torch"])
def test_it_can_be_left_alone(order: str) -> None:
    ask = f"{order}; import razor.half_products as h; print(h.install())"
    assert child(ask, RAZOR_HALF_PRODUCTS="0").strip() == "False"


def test_both_sides_are_timed() -> None:
    found, _ = run("half_products.py", "rows=8", "rounds=1")
    assert found["replaced"] == razor.half_products.slow()
    assert min(found["seconds"].values()) > 0 and found["torch / razor"] > 0
