"""A plan as a file that people read and edit.

A plan of a large model names hundreds of matrices and a handful of formats. So the file says each format once,
under a name (a YAML anchor), and then gives every module one line that refers to it:

    formats:
      - &Integer_1 {kind: Integer, width: 4, group: 256}
      - &Ternary_1 {kind: Ternary, group: 256}
    modules:
      model.embed_tokens: {weights: *Integer_1, activations: null}
      model.layers.0.mlp.up_proj: {weights: *Ternary_1, activations: null}
    kv_cache: null
    rest: {kind: Float16, dtype: bfloat16}

To any YAML parser this is the plan's plain data. The formats may as well be written out where they are used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from razor.errors import RazorError

FORMATS = "formats"
FIRST_LINE = "# A plan: which weight of a model is held in which format"


def plan_text(data: Mapping[str, Any]) -> str:
    """YAML of `Plan.to_dict()`."""
    anchors: dict[str, tuple[str, str]] = {}
    body = []
    for key, value in data.items():
        if isinstance(value, Mapping) and "kind" not in value:
            entries = [f"  {_flow(name)}: {_inline(item, anchors)}" for name, item in value.items()]
            body.append("\n".join([f"{_flow(key)}:", *entries]) if entries else f"{_flow(key)}: {{}}")
        else:
            body.append(f"{_flow(key)}: {_inline(value, anchors)}")
    head = [f"{FORMATS}:", *(f"  - &{name} {text}" for name, text in anchors.values())] if anchors else []
    return "\n".join([FIRST_LINE, *head, *body]) + "\n"


def read_plan_file(path: Path) -> dict[str, Any]:
    """What `Plan.from_dict` reads, from a file.

    Raises:
        RazorError: no such file, no YAML, no mapping, or a key that is there twice.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), NoDuplicates)
    except OSError as error:
        raise RazorError(
            f"The plan '{path}' cannot be read ({error.strerror}); razor plan out=FOLDER writes one."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RazorError(f"The plan '{path}' is no YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(data, dict):
        raise RazorError(f"'{path}' is no plan: it holds no mapping with 'modules' (razor plan out=FOLDER).")
    return {key: value for key, value in data.items() if key != FORMATS}


def _inline(value: Any, anchors: dict[str, tuple[str, str]]) -> str:
    """A value in one line; formats are named in `anchors` and referred to."""
    if not isinstance(value, Mapping):
        return _flow(value)
    if "kind" not in value:
        return "{" + ", ".join(f"{_flow(k)}: {_inline(v, anchors)}" for k, v in value.items()) + "}"
    key = json.dumps(value, sort_keys=True)
    if key not in anchors:
        count = 1 + sum(name.startswith(f"{value['kind']}_") for name, _ in anchors.values())
        anchors[key] = f"{value['kind']}_{count}", _flow(value)
    return f"*{anchors[key][0]}"


def _flow(value: Any) -> str:
    """YAML of plain data in one line."""
    text = yaml.safe_dump([value], default_flow_style=True, sort_keys=False, width=10**9, allow_unicode=True)
    return str(text).strip()[1:-1]


class NoDuplicates(yaml.SafeLoader):
    """A key given twice is an error: YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: D102
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in seen:
                raise yaml.YAMLError(f"'{name}' is there twice, again in line {key.start_mark.line + 1}")
            seen.add(name)
        return super().construct_mapping(node, deep)
