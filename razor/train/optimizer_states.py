"""The state of an optimizer in a checkpoint, by the names of parameters.

torch numbers parameters in the order of the optimizer's groups, FSDP2 in that of the module. Names mean the same to
both, so a checkpoint written by one process goes on cut over eight, and the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn


def names_of(module: nn.Module, groups: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Number of each parameter, in the order of an optimizer's groups -> its name in `module`."""
    known = {id(parameter): name for name, parameter in module.named_parameters()}
    ordered = [parameter for group in groups for parameter in group["params"]]
    return {number: known[id(parameter)] for number, parameter in enumerate(ordered)}


def renamed(state: Mapping[str, Any], names: Mapping[Any, Any]) -> dict[str, Any]:
    """A `state_dict` of an optimizer with every parameter called by what `names` says of it."""
    return {
        "state": {names[key]: value for key, value in state["state"].items()},
        "param_groups": [
            {**group, "params": [names[key] for key in group["params"]]} for group in state["param_groups"]
        ],
    }
