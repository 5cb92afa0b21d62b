"""What one cell is, and the peer's side of it: a process in the peer's environment that is told a job.

A job is plain data: which files hold teacher and batches, the configuration, a learning rate for every step. What
came of it is kept in the cell's folder together with the job, and is not made again while the job is the same.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peer.configuration import LOSSES
from peer.environment import peer_python
from peer.sides import BENCHMARKS, environment
from peer_batches import Run, architecture_of

from razor.errors import RazorError

HERE = Path(__file__).resolve().parent
LAYOUTS = ("joined", "documents")
LATENTS = "latents.safetensors"


@dataclass(frozen=True)
class Cell:
    """What was chosen; the rest of its run is in the overrides.

    Attributes:
        rung: of the ladder; a folder of results.
        quant: width, one of the peer's (`peer.configuration.LOSSES`).
        learning_rate, schedule, seed, steps: as in train.py.
        losses: whose published weights of the losses, "qwen3" or "mobilellm".
        layout: see `side_models.py`.
    """

    rung: str
    quant: str
    learning_rate: float
    schedule: str
    seed: int
    steps: int
    losses: str = "qwen3"
    layout: str = "joined"

    def __post_init__(self) -> None:
        for key, choices in (("losses", LOSSES), ("quant", LOSSES["qwen3"]), ("layout", LAYOUTS)):
            if getattr(self, key) not in choices:
                raise RazorError(f"{key}={getattr(self, key)}. Choices: {', '.join(choices)}.")

    @property
    def name(self) -> str:
        """Of its folder and its file; defaults are left out."""
        others = [x for x, default in ((self.losses, "qwen3"), (self.layout, "joined")) if x != default]
        words = [self.quant, "peer", *others, f"lr{self.learning_rate:g}", self.schedule, f"s{self.seed}"]
        return "_".join(words)

    @property
    def overrides(self) -> list[str]:
        """Of train.py."""
        return [
            f"quant={self.quant}",
            f"trainer.max_steps={self.steps}",
            f"trainer.learning_rate={self.learning_rate:g}",
            f"trainer.schedule={self.schedule}",
            f"seed={self.seed}",
        ]


def trained(
    cell: Cell, run: Run, files: dict[str, Path], folder: Path, peer: str, threads: int
) -> dict[str, Any]:
    """What the peer's side found; it is started unless the folder holds that of this very job already.

    Raises:
        RazorError: it failed; the text names its log.
    """
    job = job_of(cell, run, files, folder)
    found, latents = folder / "found.json", folder / LATENTS
    if found.is_file() and latents.is_file() and json.loads(found.read_text())["job"] == job:
        return dict(json.loads(found.read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (found, latents):
        stale.unlink(missing_ok=True)
    (folder / "job.json").write_text(json.dumps(job, indent=1))
    python, log = peer_python(peer), folder / "peer.log"
    print(f"{cell.name}: the peer trains (tail -f {log})", flush=True)
    command = [str(python), str(HERE / "peer_side.py"), str(folder / "job.json")]
    with log.open("w") as out:
        variables = environment(threads) | {"PYTHONPATH": str(BENCHMARKS)}
        code = subprocess.run(command, stdout=out, stderr=out, env=variables).returncode
    if code or not found.is_file():
        last = (log.read_text(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise RazorError(f"The peer's side ended with code {code} ({last}): see '{log}'.")
    return dict(json.loads(found.read_text()))


def job_of(cell: Cell, run: Run, files: dict[str, Path], folder: Path) -> dict[str, Any]:
    """What the peer's side is told."""
    settings, model = run.teaching.settings, run.config.model
    return {
        "folder": str(folder.resolve()),
        **{name: str(path.resolve()) for name, path in files.items()},
        "architecture": architecture_of(run.teaching.model.config()),
        "configuration": {
            "width": cell.quant,
            "losses": cell.losses,
            "group": model.group,
            "kv_group": model.kv_group,
        },
        "layout": cell.layout,
        "padding": run.corpus.train.pad_id,
        "learning_rates": run.learning_rates,
        "betas": list(settings.betas),
        "weight_decay": settings.weight_decay,
        "clip": settings.clip,
        "rows_per_batch": run.batches.rows_per_batch,
    }
