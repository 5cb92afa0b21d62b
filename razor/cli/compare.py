"""`razor compare`: many runs in one table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from razor.cli.config import composed
from razor.errors import RazorError

ROWS = {"after": ("after",), "all": ("after", "before", "teacher")}
SEEDS = ("mean", "each")


def compare(overrides: Sequence[str]) -> int:
    """`razor compare`: runs in one table, what cannot be compared marked; score against bits as a figure."""
    from razor.evals.compare import compare as compare_runs
    from razor.evals.compare_runs import gather
    from razor.evals.compare_table import markdown, records, write

    config = composed("compare", overrides)
    for key, choices in (("rows", ROWS), ("seeds", SEEDS)):
        if config[key] not in choices:
            raise RazorError(f"{key}='{config[key]}'. Choices: {', '.join(choices)}.")
    if config.out == "":
        raise RazorError("out= is empty: give a folder, or leave it out.")
    runs, others = gather(folders_of(config.dirs))
    found = compare_runs(runs, ROWS[config.rows], config.seeds)
    written = [] if config.out is None else write(found, others, Path(config.out))
    if config.json:
        unfinished = [{"folder": str(folder), "reason": reason} for folder, reason in others]
        data = {"rows": records(found), "unfinished": unfinished, "notes": found.notes}
        print(json.dumps(data | {"written": [str(path) for path in written]}))
    else:
        print("\n".join([markdown(found, others), *(f"\nwrote {path}" for path in written)]))
    return 0


def folders_of(dirs: Any) -> list[Path]:
    """`dirs=` as folders: one, or a list.

    Raises:
        RazorError: it is something else, or empty.
    """
    given = OmegaConf.to_container(dirs) if OmegaConf.is_config(dirs) else [dirs]
    if not isinstance(given, list) or not given or not all(isinstance(name, (str, int)) for name in given):
        raise RazorError(f"dirs={dirs}: give folders, dirs=[runs/a,runs/b].")
    return [Path(str(name)) for name in given]
