"""The peer's side: its own package trains on the batches that it is given. Runs in the peer's environment.

    python peer_side.py JOB.json

The job names the teacher's weights, the batches, the configuration and a learning rate for every step; what comes
back lies in the job's folder: `latents.safetensors` (fp32) and then `found.json`, each moved into place whole.
Quantization, KV cache and losses are calls of the peer's API (`side_models.py`). What is ours is the loop around
it: AdamW, weight decay on matrices only, as in Hugging Face's trainer, of which its own is one; gradients clipped;
scores on the way (`side_scoring.py`).
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peer.products import same_products
from safetensors.torch import load_file, save_file
from side_models import Models, Rows, made, micro_batches
from side_scoring import Expected, kv_effect, score

PACKAGES = ("edgerazor", "torch", "transformers")


def optimizer_of(student: Any, job: dict[str, Any]) -> torch.optim.Optimizer:
    """AdamW; no weight decay on norms."""
    matrices = [p for p in student.parameters() if p.ndim >= 2]
    vectors = [p for p in student.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": job["weight_decay"]},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=job["learning_rates"][0], betas=tuple(job["betas"]), fused=True)


def train(models: Models, rows: Rows, expected: Expected, job: dict[str, Any]) -> dict[str, Any]:
    """All steps, with the held-out KL on the way; a run whose loss is no number any more ends there."""
    rates = job["learning_rates"]
    optimizer = optimizer_of(models.student, job)
    losses: list[float] = []
    seconds: list[float] = []
    held_out, tokens, diverged = score(models, expected), 0, None
    curve = [[0, held_out["kl"]]]
    points = {math.ceil(len(rates) * part) for part in (0.25, 0.5, 0.75, 1)}
    batches, processor = micro_batches(rows, job["rows_per_batch"]), 0.0
    for step, (rate, batch) in enumerate(zip(rates, batches, strict=True), 1):
        started, before = time.perf_counter(), time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = rate
        models.student.train()
        loss = models.loss(batch.joined() if job["layout"] == "joined" else batch.by_document(job["padding"]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(models.student.parameters(), job["clip"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        seconds.append(time.perf_counter() - started)
        processor += time.process_time() - before
        tokens += int((batch.documents >= 0).sum())
        print(f"step {step}/{len(rates)}: loss {losses[-1]:.4f}, {seconds[-1]:.2f} s", flush=True)
        if not math.isfinite(losses[-1]):
            diverged = step
            break
        if step in points:
            held_out = score(models, expected)
            curve.append([tokens, held_out["kl"]])
            print(f"{tokens} tokens: held-out KL {held_out['kl']:.4f}", flush=True)
    counted = {"tokens": tokens, "steps": len(losses), "diverged": diverged, "curve": curve}
    counted |= {"losses": losses, "seconds": sum(seconds), "processor_seconds": processor}
    return counted | {"held_out": held_out if diverged is None else None}


def main(job: dict[str, Any]) -> None:
    """Train, score, save."""
    torch.manual_seed(0)  # nothing here is drawn by chance; should the peer draw, it draws the same
    folder = Path(job["folder"])
    arrays = load_file(job["batches"])
    rows, held_out = (Rows.read(arrays, name) for name in ("train", "held_out"))
    models = made(job)
    found: dict[str, Any] = {"kv_effect": kv_effect(models, held_out.some(0, 2))}
    found |= train(models, rows, Expected.of(models, held_out), job)
    exact = replace(models, mixed=False, teacher=models.teacher.float())
    broken = found["diverged"] is not None
    found["held_out_float32"] = None if broken else score(exact, Expected.of(exact, held_out))
    state = {name: value.contiguous() for name, value in models.student.state_dict().items()}
    if models.student.config.tie_word_embeddings:
        del state["lm_head.weight"]
    save(folder / "latents.safetensors", lambda path: save_file(state, path))
    found |= {"job": job, "threads": torch.get_num_threads(), "versions": {p: version(p) for p in PACKAGES}}
    text = json.dumps(plain(found), indent=1)
    save(folder / "found.json", lambda path: path.write_text(text))


def plain(value: Any) -> Any:
    """For JSON, which knows no NaN: null."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    write(part)
    os.replace(part, path)


if __name__ == "__main__":
    same_products()
    main(json.loads(Path(sys.argv[1]).read_text()))
