"""Where formats go: every weight of a model that a plan speaks about.

A plan is a list of names, so somebody has to say which names there are, which tensor each stands for, along
which of its dimensions a format groups, and how wide the layer's input is. That is a `Site`, and `sites`
finds them all; checking a plan, sizes, quantizing, packing and loading go over it, and nothing else knows
kinds of layers.

Linear layers, embeddings, convolutions and the stacked experts of a mixture have to be planned. Any other
parameter of two dimensions or more, such as the router of a mixture, may be; it keeps the plan's 16 bits
unless the plan names it. What Razor cannot quantize (a transposed convolution, experts stored in a way it
does not know) has to be planned too, so that it is left out in so many words: 16-bit weights, no activations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils.parametrize import ParametrizationList

from razor.errors import RazorError
from razor.quant.format import Format
from razor.quant.view import MatrixView

LAYERS = (nn.Linear, nn.Embedding, _ConvNd)
PRODUCTS = ("gate_up_proj", "up_proj", "down_proj")
"""What Transformers calls the stacked weights of experts whose inputs can be reached."""
ATTENTION = "used by torch's MultiheadAttention in its own way"


@dataclass(frozen=True)
class Site:
    """One weight.

    Attributes:
        path: full name of the module that owns it.
        attribute: its name there.
        module: that module.
        kind: "linear", "embedding", "conv", "experts", or "other", which a plan need not speak of.
        view: how a format sees it as rows of inputs that share scales.
        inputs: length of the last dimension of the activations it is multiplied with; None: takes none.
        fixed: why it can only be kept in 16 bits; None if it can be quantized.
    """

    path: str
    attribute: str
    module: nn.Module
    kind: str
    view: MatrixView = field(default_factory=MatrixView)
    inputs: int | None = None
    fixed: str | None = None

    @property
    def name(self) -> str:
        """What a plan calls it: its module, or the parameter's full name where that is not just `weight`."""
        return self.path if self.attribute == "weight" else f"{self.path}.{self.attribute}".lstrip(".")

    @property
    def weight(self) -> Tensor:
        """The parameter; in a quantized model the latent weight."""
        weight = self.module._parameters[self.attribute]
        assert weight is not None
        return weight

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) that a format sees."""
        return self.view.shape(self.weight.shape)


def sites(model: nn.Module) -> dict[str, Site]:
    """Every site of a model on any device, by the name that a plan calls it, in the order of its modules.

    Raises:
        RazorError: the weight of a layer is not a parameter but made from others (weight normalisation).
    """
    found: dict[str, Site] = {}
    skipped: tuple[str, ...] = ()
    for path, module in model.named_modules():
        if isinstance(module, (Format, ParametrizationList)):  # scales and such are no weights of the model
            skipped += (f"{path}.",)
        elif not path.startswith(skipped):
            found |= {site.name: site for site in _sites_of(path, module)}
    return found


def _sites_of(path: str, module: nn.Module) -> Iterator[Site]:
    if isinstance(module, LAYERS) and "weight" not in module._parameters:
        raise RazorError(
            f"The weight of '{path}' is made from other parameters; make it one first "
            "(torch.nn.utils.parametrize.remove_parametrizations or remove_weight_norm)."
        )
    parameters = module.named_parameters(recurse=False)
    own: dict[str, Tensor] = {name: p for name, p in parameters if p.is_floating_point() and p.ndim > 1}
    if isinstance(module, LAYERS) and "weight" in own:
        yield _layer(path, module, own.pop("weight"))
    elif _is_gpt2_linear(module) and "weight" in own:
        inputs = own.pop("weight").shape[0]
        yield Site(path, "weight", module, "linear", MatrixView(turned=True), inputs)
    elif isinstance(module, nn.MultiheadAttention):
        for name in [name for name in own if name.startswith("in_proj") or name.endswith("_proj_weight")]:
            del own[name]
            yield Site(path, name, module, "linear", fixed=ATTENTION)
    else:
        for name in [name for name, weight in own.items() if _are_experts(module, weight)]:
            yield _experts(path, module, name, own.pop(name))
    for name, weight in own.items():
        if not _are_biases(module, name):
            yield Site(path, name, module, "other", MatrixView(leading=weight.ndim - 1))


def _layer(path: str, module: nn.Module, weight: Tensor) -> Site:
    if isinstance(module, nn.Embedding):
        changing = "an embedding that changes its table as it is read (max_norm)"
        return Site(path, "weight", module, "embedding", fixed=changing if module.max_norm else None)
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return Site(path, "weight", module, "linear", fixed=ATTENTION)
    if isinstance(module, _ConvTransposeNd):
        return Site(path, "weight", module, "conv", fixed="a transposed convolution")
    if isinstance(module, _ConvNd):
        return Site(path, "weight", module, "conv", inputs=module.in_channels)
    return Site(path, "weight", module, "linear", inputs=weight.shape[1])


def _is_gpt2_linear(module: nn.Module) -> bool:
    """Transformers' `Conv1D`: a linear layer with its weight stored [in, out]."""
    return any(
        kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"
        for kind in type(module).__mro__
    )


def _are_experts(module: nn.Module, weight: Tensor) -> bool:
    return weight.ndim == 3 and getattr(module, "num_experts", None) == len(weight)


def _are_biases(module: nn.Module, name: str) -> bool:
    """Biases of experts have two dimensions, [experts, out]."""
    return name.endswith("bias") and hasattr(module, "num_experts")


def _experts(path: str, module: nn.Module, attribute: str, weight: Tensor) -> Site:
    """Stacked experts; Transformers' `use_experts_implementation` marks how a class stores them."""
    turned = getattr(module, "is_transposed", None)
    if turned is None or not hasattr(module, "has_gate"):
        fixed = f"a tensor of experts that {type(module).__name__} stores in a way of its own"
        return Site(path, attribute, module, "experts", MatrixView(leading=2), fixed=fixed)
    inputs = weight.shape[1 if turned else 2] if attribute in PRODUCTS else None
    return Site(path, attribute, module, "experts", MatrixView(bool(turned), 2), inputs)
