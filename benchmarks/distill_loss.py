"""EAKLD from hidden states to gradients: our chunked loss against the peer's on whole logits.

Both sides get the last hidden states [1, tokens, width] of a student and a teacher and the weights of their heads,
make the logits, and go back to the gradients of the student's hidden states and head. `peer/head.py` says how time
and memory of one call are measured; both sides are measured by the same lines.

    python benchmarks/distill_loss.py [dtype=float32] [tokens=512] [vocabulary=151936] [width=1024] [steps=5]
        [threads=0] [peer=on] [heap=kept] [roof=true]

prints a few lines and then one JSON object. `speed_ratio`: ours / peer in tokens/s, the median of the ratios of
rounds in which the sides take turns, under the heap settings of train.py. `memory_ratio`: ours / peer in bytes
beyond weights, inputs and gradients, in processes with the system's own allocator, where what is freed is gone;
with the heap kept its holes come on top (`memory_ratio_heap_kept`). `roof_share`: FLOP/s of the head products that
the task has (8 a token and head weight; `roofline.py`) over the machine's best.

`dtype=bfloat16`: all tensors in it. `heap=system` times both sides with the system's own allocator too.
`peer=off` measures ours alone, `peer=FOLDER` keeps the peer's environment there, `threads=0` means all cores.

    python benchmarks/distill_loss.py curve=true [vocabularies=32768,...] [lengths=512,...]

measures ours alone over vocabularies (at `tokens`) and tokens (at `vocabulary`): memory should not depend on the
vocabulary, and time should be linear in both.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from peer.environment import peer_python
from peer.head import Head, measured
from peer.sides import (
    Side,
    choice,
    cores,
    end,
    in_turn,
    machine,
    median_ratio,
    ratio,
    read_options,
    serve,
    versions,
)
from roofline import peaks, step_flops

from razor.distill import EAKLD, Batch, Objective, Trace

OPTIONS = {
    "dtype": "float32",
    "tokens": 512,
    "vocabulary": 151936,
    "width": 1024,
    "steps": 5,
    "memory_calls": 2,
    "threads": 0,
    "peer": "on",
    "heap": "kept",
    "roof": True,
    "curve": False,
    "vocabularies": "32768,65536,131072,262144",
    "lengths": "512,1024,2048,4096,8192",
}


def ours(job: dict[str, Any]) -> dict[str, Any]:
    """Our side: what the parent may ask for."""
    objective = Objective({"eakld": EAKLD()}, {"eakld": 1.0})

    def loss(head: Head) -> torch.Tensor:
        rows, tokens = head.labels.shape
        batch = Batch(
            head.labels,
            head.labels,
            torch.arange(tokens).expand(rows, tokens),
            torch.arange(rows).unsqueeze(1).expand(rows, tokens),
        )
        teacher = Trace(head.teacher, head.teacher_weight)
        seen = objective.observe(teacher, batch)
        return objective(Trace(head.hidden, head.weight), teacher, batch, seen)[0]

    return measured(job, loss) | {"versions": lambda: versions("torch", "transformers", "razor-qad")}


def sides(options: dict[str, Any], peer: Path | None, heap: bool) -> list[Side]:
    """Our process, and the peer's if there is one."""
    job = {key: options[key] for key in ("tokens", "vocabulary", "width", "dtype")}
    started = [Side("ours", sys.executable, "distill_loss", job, options["threads"], heap)]
    if peer is not None:
        started.append(Side("peer", peer, "peer.loss", job, options["threads"], heap))
    return started


def extra_bytes(running: list[Side], calls: int) -> dict[str, float | None]:
    """Median of what a call of each side holds beyond weights, inputs and gradients."""
    answers = in_turn(running, "memory_of_call", calls)
    return {name: _median([a["bytes"] for a in each]) for name, each in answers.items()}


def measure(options: dict[str, Any], peer: Path | None) -> dict[str, Any]:
    """Seconds and extra bytes of each side, and their ratios."""
    running = sides(options, peer, heap=False)
    plain = extra_bytes(running, options["memory_calls"])
    end(running)
    running = sides(options, peer, heap=True)
    kept = extra_bytes(running, options["memory_calls"])
    if options["heap"] == "system":
        end(running)
        running = sides(options, peer, heap=False)
    timed = in_turn(running, "time", options["steps"] + 1)  # the first one faults the heap in again
    named = {side.name: side.ask("versions") for side in running}
    end(running)
    seconds = {name: [a["seconds"] for a in answers[1:]] for name, answers in timed.items()}
    found: dict[str, Any] = {
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "extra_bytes": plain,
        "extra_bytes_heap_kept": kept,
        "loss": {name: answers[-1]["loss"] for name, answers in timed.items()},
        "all_seconds": seconds,
        "versions": named,
    }
    flops = step_flops(options["vocabulary"] * options["width"], options["tokens"], options["tokens"])
    found["flops"] = {name: flops / taken for name, taken in found["seconds"].items()}
    if peer is not None:
        found["speed_ratio"] = median_ratio(seconds["peer"], seconds["ours"])
        found["memory_ratio"], found["memory_ratio_heap_kept"] = ratio(plain), ratio(kept)
    return found


def curve(options: dict[str, Any]) -> list[dict[str, Any]]:
    """Ours over vocabularies and over tokens; each point in processes of its own."""
    points = [("vocabulary", int(v)) for v in options["vocabularies"].split(",")]
    points += [("tokens", int(t)) for t in options["lengths"].split(",")]
    rows = []
    print(
        f"{'tokens':>7} {'vocabulary':>10} {'seconds':>9} {'extra MB':>9} {'heap kept':>9}   {options['dtype']}"
    )
    for name, value in points:
        here = options | {name: value}
        found = measure(here, None)
        point = {"over": name, "tokens": here["tokens"], "vocabulary": here["vocabulary"]}
        point |= {key: found[key]["ours"] for key in ("seconds", "extra_bytes", "extra_bytes_heap_kept")}
        sizes = (_megabytes(point[key]) for key in ("extra_bytes", "extra_bytes_heap_kept"))
        print(
            f"{point['tokens']:>7} {point['vocabulary']:>10} {point['seconds']:>9.3f} " + " ".join(sizes),
            flush=True,
        )
        rows.append(point | {"all_seconds": found["all_seconds"]["ours"]})
    return rows


def show(found: dict[str, Any]) -> None:
    """A few lines for people."""
    for name, seconds in found["seconds"].items():
        plain, kept = (_megabytes(found[key][name]) for key in ("extra_bytes", "extra_bytes_heap_kept"))
        share = (
            "" if not found["roof_share"] else f", {100 * found['roof_share'][name]:.0f} % of the GEMM peak"
        )
        print(f"{name}: {seconds:8.3f} s, {plain} MB beyond the rest ({kept} MB with the heap kept){share}")
    if "speed_ratio" in found:
        print(f"ours / peer: speed {found['speed_ratio']:.2f}, memory {found['memory_ratio'] or 0:.3f}")


def main(words: list[str]) -> dict[str, Any]:
    options = read_options(words, OPTIONS)
    choice(options, "dtype", ("float32", "bfloat16"))
    choice(options, "heap", ("kept", "system"))
    options["threads"] = options["threads"] or cores()
    result = {"benchmark": "distill_loss", **options, "machine": machine(options["threads"])}
    if options["curve"]:
        return result | {"curve": curve(options), "versions": versions("torch", "razor-qad")}
    found = measure(options, peer_python(options["peer"]))
    peak = peaks(options["threads"], options["dtype"])[options["dtype"]] if options["roof"] else None
    found["roof_share"] = None if peak is None else {name: f / peak for name, f in found["flops"].items()}
    show(found)
    return result | {"gemm_peak_flops": peak} | found


def _median(values: list[int | None]) -> float | None:
    return None if None in values else statistics.median(values)  # type: ignore[type-var]


def _megabytes(size: float | None) -> str:
    return "unknown" if size is None else f"{size / 1e6:.0f}"


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1].startswith("{"):  # a child
        serve(ours)
    else:
        print(json.dumps(main(sys.argv[1:])))
