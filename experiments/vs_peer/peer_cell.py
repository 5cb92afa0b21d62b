"""One cell of the comparison: the peer trains, its latents are scored by both packages, a result is written.

**The cross-check.** The peer's latents, loaded into Razor's student of the same width, make the same model but for
roundings: Razor keeps scales in fp16 and norms in bf16, the peer both in fp32. So the held-out KL of the peer's own
forward pass and that of Razor's must agree. They are compared in fp32, where nothing else differs, and the gap is
part of the result. `held_out` is Razor's figure in bf16, by the very code that scores every other method.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peer_batches import Run
from peer_job import LATENTS, Cell, trained
from safetensors.torch import load_file

from razor.cli import config as cli
from razor.errors import RazorError
from razor.evals.held_out import score_held_out
from razor.models import make_student
from razor.quant import Plan, measure
from razor.storage import atomic_write
from razor.train.facts import environment as facts


def student_of(run: Run, plan: Plan, latents: Path, dtype: torch.dtype) -> Any:
    """Razor's student with the peer's latents.

    Raises:
        RazorError: they are gone, or of another model.
    """
    if not latents.is_file():
        raise RazorError(f"'{latents}' is gone: remove the cell's result and its folder to train it again.")
    student = make_student(run.teaching.model.load(dtype), plan, dtype)
    missing, unknown = student.load_state_dict(load_file(latents), strict=False)
    tied = {"lm_head.weight"} if student.config.tie_word_embeddings else set()
    if unknown or set(missing) - tied:
        raise RazorError(f"'{latents}' does not fit {run.teaching.model.name}: {[*unknown, *missing][:3]}.")
    return student.eval()


def scored(run: Run, plan: Plan, latents: Path, dtype: torch.dtype) -> dict[str, float]:
    """Held-out text under Razor's student of these latents."""
    student, teacher = student_of(run, plan, latents, dtype), run.teaching.model.load(dtype)
    return score_held_out(student, teacher, run.held_out).to_dict()


def result(
    cell: Cell, run: Run, files: dict[str, Path], folder: Path, peer: str, threads: int
) -> dict[str, Any]:
    """Train, cross-check, and put everything into the form that all studies share."""
    found = trained(cell, run, files, folder, peer, threads)
    recipe = cli.build(run.config.quant)
    skeleton = run.teaching.model.skeleton()
    plan = recipe.plan(skeleton)
    size, latents = measure(skeleton, plan), folder / LATENTS
    broken = found["held_out"] is None or found["held_out"]["kl"] is None
    ours = {
        dtype: None if broken else scored(run, plan, latents, getattr(torch, dtype))
        for dtype in ("bfloat16", "float32")
    }
    known = facts(torch.device("cpu"))
    return {
        "study": "vs_peer",
        "rung": cell.rung,
        "model": run.teaching.model.name,
        "note": run.config.model.note,
        "quant": cell.quant,
        "w_a_kv": recipe.w_a_kv,
        "method": "peer",
        "seed": cell.seed,
        "tokens": found["tokens"],
        "calibration_tokens": 0,
        "steps": found["steps"],
        "learning_rate": cell.learning_rate,
        "schedule": cell.schedule,
        "bits_per_weight": size.total.bits_per_weight,
        "code_bits": size.code_bits,
        "ratio_paper": size.total.ratio_paper,
        "ratio_disk": size.total.ratio_disk,
        "bytes_disk": size.total.bytes_disk,
        "held_out": ours["bfloat16"],
        "scores": None,
        "curve": found["curve"],
        "seconds": found["seconds"],
        "tokens_per_second": found["tokens"] / found["seconds"],
        "hardware": known["hardware"] | {"threads": found["threads"]},
        "versions": known["versions"] | {f"peer/{name}": v for name, v in found["versions"].items()},
        "git": known["git"],
        "command": None,
        "peer": of_peer(found, ours["float32"]),
        "cell": asdict(cell),
    }


def of_peer(found: dict[str, Any], ours: dict[str, float] | None) -> dict[str, Any]:
    """What only this method has: both KLs of the cross-check, and how the run went."""
    theirs = found["held_out_float32"]
    return {
        "held_out": found["held_out"],
        "held_out_float32": theirs,
        "razor_float32": ours,
        "kl_gap": None if ours is None or theirs is None else ours["kl"] - theirs["kl"],
        "kv_effect": found["kv_effect"],
        "diverged": found["diverged"],
        "processor_seconds": found["processor_seconds"],
        "losses": found["losses"],
        "learning_rates": found["job"]["learning_rates"],
        "configuration": found["job"]["configuration"],
        "layout": found["job"]["layout"],
    }


def kept(path: Path, cell: Cell, make: Callable[[], dict[str, Any]], command: list[str]) -> dict[str, Any]:
    """The result in a file; made if it is not there.

    Raises:
        RazorError: the file is damaged, or of other choices than its name tells.
    """
    if path.is_file():
        try:
            there: dict[str, Any] = json.loads(path.read_text())
        except ValueError as error:
            raise RazorError(f"'{path}' is damaged: remove it.") from error
        if there["cell"] != asdict(cell):
            raise RazorError(
                f"'{path}' is of steps={there['cell']['steps']}, not {cell.steps}: remove it, or another rung=."
            )
        print(f"{cell.name}: there already", flush=True)
        return there
    found = make() | {"command": shlex.join(command)}
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(found, indent=1))
    return found
