"""What a model asks of any recipe: matrices that the recipe's group does not divide.

A model's YAML names one group for all its formats (`model.group`). Where a matrix has a width that this does not
divide, 3,420 inputs and groups of 32, the YAML says so once, and every recipe, of any width, follows:

    exceptions:
      "*.mlp.down_proj": {group: 36}
      "*.patch_embed.proj": {group: 28, inputs: none}

So an exception says nothing about bits. A recipe's own `overrides` come after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from razor.errors import RazorError
from razor.quant import Format


@dataclass(frozen=True)
class ModelException:
    """What a pattern of a model changes.

    Attributes:
        group: of whatever formats weights and inputs have; None: the recipe's.
        inputs: "none" leaves the layer's input in 16 bits.
    """

    group: int | Literal["row", "tensor"] | None = None
    inputs: Literal["keep", "none"] = "keep"

    def __post_init__(self) -> None:
        if self.group is None and self.inputs == "keep":
            raise RazorError("this exception changes nothing; give it group, inputs or both.")

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"group": self.group, "inputs": self.inputs}

    def applied(self, format: Format, path: str) -> Format:
        """A format with this group, and the formats within it; the same object if it has none.

        Args:
            format: of a weight or an input.
            path: of the exception, for error texts.
        """
        spec = format.spec()
        changed = spec if self.group is None else _regrouped(spec, self.group)
        return format if changed == spec else Format.from_spec(changed, path)


def _regrouped(spec: Mapping[str, Any], group: int | str) -> dict[str, Any]:
    inner = {
        key: _regrouped(value, group) if isinstance(value, Mapping) else value for key, value in spec.items()
    }
    return inner | ({"group": group} if "group" in spec else {})
