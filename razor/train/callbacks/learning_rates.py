"""Learning rate and gradient norm, for each group of parameters that the optimizer treats alike.

Matrices, vectors (norms, biases) and learned scales live at different sizes; one norm over all of them shows the
matrices alone. Norms are those before clipping.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from razor.train.callbacks.base import RunCallback
from razor.train.sharding import full


class LearningRates(RunCallback):
    """Logs `learning_rate/<group>` and `gradient_norm/<group>` of every optimizer step."""

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Look at the groups before clipping changes gradients."""
        values: dict[str, float] = {}
        groups = optimizer.param_groups
        for name, group in zip(group_names(pl_module, groups), groups, strict=True):
            values[f"learning_rate/{name}"] = float(group["lr"])
            if gradients := [p.grad for p in group["params"] if p.grad is not None]:
                values[f"gradient_norm/{name}"] = norm_of(gradients)
        self.show(pl_module, values)


def norm_of(gradients: list[Tensor]) -> float:
    """Euclidean norm of all of them together, over all pieces of sharded ones."""
    return float(full(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))))


def group_names(model: nn.Module, groups: list[dict[str, Any]]) -> list[str]:
    """A name for each group of an optimizer by what is in it: matrices, vectors, scales, or several of them."""
    scales = {
        id(parameter)
        for module in model.modules()
        if hasattr(module, "lr_multiplier")
        for parameter in module.parameters(recurse=False)
    }
    names: list[str] = []
    for group in groups:
        kinds = {
            "scales" if id(p) in scales else "matrices" if p.ndim >= 2 else "vectors" for p in group["params"]
        }
        name = "_".join(sorted(kinds))
        same = sum(other.partition("-")[0] == name for other in names)
        names.append(f"{name}-{same + 1}" if same else name)
    return names
