"""Reading and writing recipes and plans: YAML or JSON, by the file's ending.

A key given twice is an error here, where YAML and JSON readers silently take the last.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from razor.errors import RazorError
from razor.quant.plan_file import NoDuplicates
from razor.storage import atomic_write

ENDINGS = (".yaml", ".yml", ".json")


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a file.

    Raises:
        RazorError: no such file, another ending, not readable, a key given twice, or no mapping.
    """
    if path.suffix not in ENDINGS:
        raise RazorError(f"'{path}' ends in '{path.suffix}'. Choices: {', '.join(ENDINGS)}.")
    if not path.is_file():
        there = sorted(p.name for p in path.parent.glob("*") if p.suffix in ENDINGS)[:10]
        raise RazorError(
            f"There is no file '{path}'. In that folder: {', '.join(there) or 'none of the kind'}."
        )
    try:
        text = path.read_text(encoding="utf-8")
        json_ = path.suffix == ".json"
        data = json.loads(text, object_pairs_hook=_pairs) if json_ else yaml.load(text, NoDuplicates)
    except (yaml.YAMLError, ValueError) as error:
        raise RazorError(f"{path} cannot be read: {' '.join(str(error).split())}.") from error
    if not isinstance(data, dict):
        raise RazorError(f"{path}: this is no mapping of keys to values.")
    return data


def write_mapping(data: dict[str, Any], path: Path) -> None:
    """Write a mapping, all or nothing.

    Raises:
        RazorError: another ending, or the disk is full.
    """
    if path.suffix not in ENDINGS:
        raise RazorError(f"'{path}' ends in '{path.suffix}'. Choices: {', '.join(ENDINGS)}.")
    if path.suffix == ".json":
        text = json.dumps(data, indent=1)
    else:
        text = yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=110)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if twice := [key for i, key in enumerate(keys) if key in keys[:i]]:
        raise ValueError(f"'{twice[0]}' is there twice")
    return dict(pairs)
