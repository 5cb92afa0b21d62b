"""A whole step of quantization-aware distillation, ours against the peer's.

A step is zero_grad, teacher, student, losses, backward, AdamW on `rows` x `length` tokens, all of them with a loss:
SmolLM2-135M's shape with random weights, W2.79-A8-KV8, 0.1 task + 2 EAKLD + 0.1 AFD. Each side is a process, the
two take turns (`peer/sides.py`), both under the heap settings of train.py; what the peer does is in `peer/step.py`.
Both stay in memory, at full size some 15 GB.

    python benchmarks/distill_step.py [dtype=mixed] [targets=online] [rows=2] [length=512] [steps=5] [threads=0]
        [peer=on] [heap=kept] [roof=true] [layers=0]

* `dtype=mixed`: latent weights in fp32. Ours computes in bf16, our default; the peer computes in fp32.
* `dtype=autocast`: the same, but the peer under torch's autocast to bf16. Its recipes know no such thing, though
  Hugging Face's trainer, of which its own is one, does it with `bf16=True`.
* `dtype=bf16`: both all bf16: latents, gradients, optimizer.
* `targets=cached`: ours is forward KL to 50 sampled tokens of the teacher's distribution, kept from an earlier
  pass, with no teacher in memory; the peer's is its EAKLD step without AFD. In bf16 unless a dtype is given.

The last line is one JSON object. `speed_ratio`: ours / peer in tokens/s, the median of the ratios of each round;
`memory_ratio`: ours / peer in peak resident bytes of the whole process, Python and libraries included
(`grown_bytes` is what came on top of those since before the models were made). `roof_share` is the FLOP/s of a step
over the best of one large matrix product in the dtype that the side computes in; `roofline.py` says how both are
counted. `peer=off` measures ours alone, `peer=FOLDER` keeps the peer's environment there, `threads=0` means all
cores, `heap=system` takes the system's own allocator, `layers=2` is for a quick look (0: all).
"""

from __future__ import annotations

import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peer.environment import peer_python
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

from razor import Distiller, cli
from razor.data.teacher_cache_kinds import kept_of
from razor.distill import EAKLD, AdaptiveFeatures, Batch, CrossEntropy, ForwardKL, Objective, Targets
from razor.models import record
from razor.models.student import quantize_in_place

OPTIONS = {
    "dtype": "",
    "targets": "online",
    "model": "smollm2_135m",
    "rows": 2,
    "length": 512,
    "layers": 0,
    "steps": 5,
    "threads": 0,
    "peer": "on",
    "heap": "kept",
    "roof": True,
}

LATENTS = {"mixed": "float32", "autocast": "float32", "bf16": "bfloat16"}
"""Dtype of the weights in training, on both sides; ours always computes in bf16, with a bf16 teacher."""

PEER = {
    "mixed": {"teacher": "float32", "compute": "float32"},
    "autocast": {"teacher": "bfloat16", "compute": "bfloat16"},
    "bf16": {"teacher": "bfloat16", "compute": "bfloat16"},
}
"""The peer's teacher, and what it computes in, by setting."""

DRAWS = 50
"""Tokens sampled from the teacher's distribution at each position of a cache."""


def composed(options: dict[str, Any]) -> Any:
    """The config of model and recipe, random weights."""
    words = [f"model={options['model']}", "quant=mixed_2p79", "model.weights=random"]
    if options["layers"]:
        words.append(f"model.architecture.num_hidden_layers={options['layers']}")
    return cli.composed("size", words)


def ours(job: dict[str, Any]) -> dict[str, Any]:
    """Our side: what the parent may ask for."""
    config = composed(job)
    source = cli.model_source(config)
    plan = cli.build(config.quant).plan(source.skeleton())
    teacher = source.load(torch.bfloat16).requires_grad_(False)
    student = copy.deepcopy(teacher)
    quantize_in_place(student, plan, torch.bfloat16)  # its latents are fp32 now
    if job["dtype"] == "bfloat16":
        for parameter in student.parameters():
            parameter.data = parameter.data.bfloat16()
    student.requires_grad_(True).train()
    batch = random_batch(job["rows"], job["length"], vocabulary(source))
    read = None
    if job["targets"] == "cached":
        read = cached_targets(teacher, batch)
        del teacher
        distiller = Distiller(Objective({"kld": ForwardKL()}, {"kld": 1.0}), student, cached="sampled")
    else:
        top = min(3, source.config().num_hidden_layers)  # of a model cut down for a quick look
        losses = {"task": CrossEntropy(), "eakld": EAKLD(), "afd": AdaptiveFeatures(top)}
        distiller = Distiller(Objective(losses, {"task": 0.1, "eakld": 2.0, "afd": 0.1}), student, teacher)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, fused=True)

    def step() -> dict[str, Any]:
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss, _ = distiller.loss(batch if read is None else replace(batch, targets=read()))
        loss.backward()
        optimizer.step()
        return {"seconds": time.perf_counter() - started, "loss": float(loss)}

    return {"step": step, "versions": lambda: versions("torch", "transformers", "razor-qad")}


def vocabulary(source: Any) -> int:
    """Number of tokens a model knows."""
    size: int = source.config().vocab_size
    return size


def random_batch(rows: int, length: int, vocabulary: int) -> Batch:
    """One document a row, every token with a loss."""
    generator = torch.Generator().manual_seed(0)
    ids, labels = (torch.randint(0, vocabulary, (rows, length), generator=generator) for _ in range(2))
    positions = torch.arange(length).expand(rows, length).clone()
    return Batch(ids, labels, positions, torch.arange(rows).unsqueeze(1).expand(rows, length).clone())


@torch.no_grad()
def cached_targets(teacher: Any, batch: Batch) -> Callable[[], Targets]:
    """What a cache of the teacher holds for the batch, packed as in its files; a call reads it as a run would.

    Only mapping the file is left out: it holds some 170 kB for 1024 tokens.
    """
    trace, kept = record(teacher, batch), kept_of("sampled", draws=DRAWS)
    hidden, labels, chance = (
        trace.hidden[batch.valid],
        batch.labels[batch.valid],
        kept.chance(0, batch.tokens),
    )
    assert chance is not None
    parts = []
    for part in (slice(start, start + 64) for start in range(0, batch.tokens, 64)):  # never the whole logits
        logp = torch.log_softmax((hidden[part] @ trace.head_weight.T).float(), -1)
        parts.append(kept.targets(logp, labels[part], chance[part]))
    said = Targets.cat(parts)
    arrays = kept.pack(said, len(trace.head_weight))

    def read() -> Targets:
        return Targets("sampled", *kept.unpack(arrays), said.entropy, said.label_probability)

    return read


def peer_architecture(config: Any) -> dict[str, Any]:
    """The same shape in the words of the Transformers that the peer runs on."""
    known = dict(config.model.architecture)
    rope = known.pop("rope_parameters")
    for key in ("model_type", "bos_token_id", "eos_token_id", "pad_token_id"):
        known.pop(key, None)
    return known | {"rope_theta": rope["rope_theta"]}


def matrix_parameters(options: dict[str, Any]) -> int:
    """Parameters of the matrices that a token is multiplied with, head included."""
    source = cli.model_source(composed(options))
    skeleton = source.skeleton()
    return sum(m.weight.numel() for m in skeleton.modules() if isinstance(m, torch.nn.Linear))


def sides(options: dict[str, Any], peer: Path | None) -> list[Side]:
    """Our process, and the peer's if there is one."""
    setting, threads, heap = options["dtype"], options["threads"], options["heap"] == "kept"
    job = {key: options[key] for key in ("targets", "model", "rows", "length", "layers")}
    job["dtype"] = LATENTS[setting]
    running = [Side("ours", sys.executable, "distill_step", job, threads, heap)]
    if peer is not None:
        job |= {"architecture": peer_architecture(composed(options)), **PEER[setting]}
        job["features"] = options["targets"] == "online"
        running.append(Side("peer", peer, "peer.step", job, threads, heap))
    return running


def measure(options: dict[str, Any], peer: Path | None) -> dict[str, Any]:
    """Seconds and memory of each side, and their ratios."""
    running = sides(options, peer)
    answers = in_turn(running, "step", options["steps"] + 1)  # the first one warms up
    memory = {side.name: side.ask("memory") for side in running}
    named = {side.name: side.ask("versions") for side in running}
    end(running)
    tokens = options["rows"] * options["length"]
    seconds = {side: [a["seconds"] for a in each[1:]] for side, each in answers.items()}
    medians = {side: statistics.median(times) for side, times in seconds.items()}
    matrices, cached = matrix_parameters(options), options["targets"] == "cached"
    taught = {"ours": 0 if cached else tokens, "peer": tokens}
    found: dict[str, Any] = {
        "seconds": medians,
        "tokens_per_second": {side: tokens / taken for side, taken in medians.items()},
        "peak_bytes": {side: both["peak"] for side, both in memory.items()},
        "grown_bytes": {side: _grown(both) for side, both in memory.items()},
        "flops": {s: step_flops(matrices, tokens, taught[s]) / taken for s, taken in medians.items()},
        "losses": {side: [a["loss"] for a in each] for side, each in answers.items()},
        "all_seconds": seconds,
        "versions": named,
    }
    if peer is not None:
        found["speed_ratio"] = median_ratio(seconds["peer"], seconds["ours"])
        found["memory_ratio"], found["grown_ratio"] = ratio(found["peak_bytes"]), ratio(found["grown_bytes"])
    return found


def show(found: dict[str, Any]) -> None:
    """A few lines for people."""
    for side, seconds in found["seconds"].items():
        peak, grown = (_gigabytes(found[key][side]) for key in ("peak_bytes", "grown_bytes"))
        share = (
            "" if not found["roof_share"] else f", {100 * found['roof_share'][side]:.0f} % of the GEMM peak"
        )
        speed = f"{seconds:7.3f} s a step, {found['tokens_per_second'][side]:7.1f} tokens/s{share}"
        print(f"{side}: {speed}; peak {peak} GB, of which models and step {grown}")
    if "speed_ratio" in found:
        print(f"ours / peer: speed {found['speed_ratio']:.2f}, memory {found['memory_ratio'] or 0:.2f}")


def main(words: list[str]) -> dict[str, Any]:
    options = read_options(words, OPTIONS)
    choice(options, "targets", ("online", "cached"))
    options["dtype"] = options["dtype"] or {"online": "mixed", "cached": "bf16"}[options["targets"]]
    choice(options, "dtype", tuple(LATENTS))
    choice(options, "heap", ("kept", "system"))
    options["threads"] = options["threads"] or cores()
    found = measure(options, peer_python(options["peer"]))
    roof = peaks(options["threads"]) if options["roof"] else None
    found["roof_share"] = roof and {
        side: flops / roof["bfloat16" if side == "ours" else PEER[options["dtype"]]["compute"]]
        for side, flops in found["flops"].items()
    }
    show(found)
    where = {"machine": machine(options["threads"]), "gemm_peak_flops": roof}
    return {"benchmark": "distill_step", **options, **where, **found}


def _grown(memory: dict[str, int | None]) -> int | None:
    before, peak = memory["before"], memory["peak"]
    return None if before is None or peak is None else peak - before


def _gigabytes(size: int | None) -> str:
    return "?" if size is None else f"{size / 1e9:.2f}"


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1].startswith("{"):  # a child
        serve(ours)
    else:
        print(json.dumps(main(sys.argv[1:])))
