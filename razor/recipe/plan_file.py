"""A finished plan in place of formats by kind: what an allocation found, or a plan edited by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from razor.models.attention import check_kv
from razor.quant import Plan, measure
from razor.quant.anatomy import reads_images
from razor.spec import located


class PlanFile:
    """A plan that is used as it is.

    Args:
        name: for tables and file names.
        plan: the plan, its plain data (`Plan.to_dict`), or a file that holds them.

    Raises:
        RazorError: no such file, or it holds no plan.
    """

    def __init__(self, name: str, plan: str | Path | Mapping[str, Any] | Plan) -> None:
        self.name = name
        if isinstance(plan, (str, Path)):
            self._plan = Plan.load(Path(plan))
        else:
            self._plan = plan if isinstance(plan, Plan) else Plan.from_dict(plan)
        self._width: str | None = None
        self._remembers = True

    @property
    def w_a_kv(self) -> str:
        """Widths of weights, activations and KV cache: once a model was planned, the decoder's mean width."""
        places = self._plan.modules.values()
        weights = self._width or _range({place.weights.label for place in places})
        activations = _range({place.activations.label for place in places if place.activations})
        kv_cache = self._plan.kv_cache.label if self._plan.kv_cache else "16"
        return f"W{weights}-A{activations}" + (f"-KV{kv_cache}" if self._remembers else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the `quant` section of a recipe."""
        return {"plan": self._plan.to_dict()}

    def plan(self, model: nn.Module) -> Plan:
        """The plan, once it is known to fit the model.

        Raises:
            RazorError: it does not (see `fitting`).
        """
        fitting(self._plan, model, "quant.plan")
        self._width = mean_width(model, self._plan)
        self._remembers = not reads_images(model)
        return self._plan


def mean_width(model: nn.Module, plan: Plan) -> str:
    """Mean code bits of the decoder's linear weights, as tables show it: '2.79'."""
    return f"{measure(model, plan).code_bits:.2f}".rstrip("0").rstrip(".")


def fitting(plan: Plan, model: nn.Module, where: str) -> Plan:
    """The plan, once it is known to fit a model (any device, also meta); `where` is its path, for error texts.

    Raises:
        RazorError: a format cannot hold a weight, or keys and values; the text names module and choices.
    """
    plan.check(model)
    if plan.kv_cache is not None:
        with located(f"{where}.kv_cache"):
            check_kv(model, plan.kv_cache)  # type: ignore[arg-type]
    return plan


def _range(labels: set[str]) -> str:
    ordered = sorted(labels, key=float)
    return "16" if not ordered else ordered[0] if len(ordered) == 1 else f"{ordered[0]}..{ordered[-1]}"
