"""Products of 16-bit matrices on a CPU that has no instructions for them.

Server CPUs since 2020 multiply bfloat16 in hardware; most laptops, and many machines in the cloud, do not. There
torch falls back to loops of its own that are 10 to 100 times slower than a product in fp32: a training step then
takes minutes, and nothing says why. The product of two 16-bit numbers is exact in fp32, and sums are kept in fp32
in either case. So on such a CPU the factors are widened, multiplied by the fp32 product, which is fast everywhere,
and the result is rounded to 16 bits once: what the hardware would do, up to the order of the sum.

`install` puts that in the place of torch's own kernels, for this process: matrix products of float16 and bfloat16
on the CPU, whoever asks for them (linear layers, attention, their gradients, the teacher, lm-eval). Products of a
few rows, as in decoding, stay torch's: there the time goes into reading the weights, and widening reads them twice.
`benchmarks/half_products.py` measures both. `RAZOR_HALF_PRODUCTS=0` leaves torch as it is.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

SWITCH = "RAZOR_HALF_PRODUCTS"
FEW = 3
"""Rows of the left factor up to which torch's own kernel is as fast."""
FORMS = {
    "mm": ("mm", "mm.out"),
    "bmm": ("bmm", "bmm.out"),
    "addmm": ("addmm", "addmm.out", "addmm_"),
    "baddbmm": ("baddbmm", "baddbmm.out", "baddbmm_"),
}
"""Products, and the ways to ask for each."""

_libraries: list[Any] = []


def slow() -> bool:
    """Whether torch has no fast kernels for bfloat16 on this CPU."""
    import torch

    return not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def install() -> bool:
    """Replace torch's products if they are slow here, once; whether they are replaced now."""
    import torch

    wanted = os.environ.get(SWITCH, "1") != "0" and hasattr(torch.library, "get_kernel")
    if not _libraries and wanted and slow():
        library = torch.library.Library("aten", "IMPL")
        _libraries.append(library)  # kernels live as long as it
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch tells that a kernel is replaced, which is the purpose
            for name, forms in FORMS.items():
                functional = torch.library.get_kernel(f"aten::{name}", "CPU")
                for form in forms:
                    own = torch.library.get_kernel(f"aten::{form}", "CPU")
                    library.impl(form, _widened(functional, own, form.endswith("_")), "CPU", with_keyset=True)
    return bool(_libraries)


def _widened(functional: Any, own: Any, in_place: bool) -> Any:
    """The kernel `own` in fp32 for 16-bit factors of more than a few rows, and itself for all else.

    Args:
        functional: the kernel of that product that gives a new tensor.
        own: it, or the one that writes into `out`, or into the first argument.
        in_place: the last of these.
    """
    import torch

    half = (torch.bfloat16, torch.float16)

    def product(keys: Any, *numbers: Any, out: Any = None, **factors: Any) -> Any:
        left = numbers[-2]  # the last but one in all four: (self, mat2), (input, mat1, mat2)
        if left.dtype not in half or left.shape[-2] <= FEW:
            return own.call_boxed(keys, *numbers, **factors, **({} if out is None else {"out": out}))
        found = functional.call_boxed(keys, *(number.float() for number in numbers), **factors)
        target = numbers[0] if in_place else out
        if target is None:
            return found.to(left.dtype)
        if target.shape != found.shape:
            target.resize_(found.shape)
        return target.copy_(found)

    return product
