"""Which parameters an optimizer should treat alike.

Weight decay is meant for matrices: pulled towards zero, norms and biases lose their meaning. Learned scales
of formats are not decayed either, and learn faster than weights, by a factor that their format knows.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from razor.errors import RazorError


def parameter_groups(model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for any torch optimizer: matrices, vectors, and learned scales by their multiplier.

    Args:
        model: its trainable parameters are taken, each once.
        learning_rate: of weights; learned scales get theirs times the `lr_multiplier` of their format.
        weight_decay: of matrices; everything else gets none.

    Raises:
        RazorError: nothing is trainable, or a number is out of range.
    """
    if not learning_rate > 0 or not weight_decay >= 0:
        raise RazorError(
            f"learning_rate={learning_rate} must be more than 0 and weight_decay={weight_decay} 0 or more."
        )
    multipliers = {
        id(parameter): float(module.lr_multiplier)  # type: ignore[arg-type]
        for module in model.modules()
        if hasattr(module, "lr_multiplier")
        for parameter in module.parameters(recurse=False)
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {(1.0, weight_decay): [], (1.0, 0.0): []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decay = weight_decay if parameter.ndim >= 2 and id(parameter) not in multipliers else 0.0
            groups.setdefault((multipliers.get(id(parameter), 1.0), decay), []).append(parameter)
    found = [
        {"params": parameters, "lr": learning_rate * multiplier, "weight_decay": decay}
        for (multiplier, decay), parameters in groups.items()
        if parameters
    ]
    if not found:
        raise RazorError(
            "No parameter of this model is trainable: a copy of a frozen teacher needs requires_grad_(True)."
        )
    return found
