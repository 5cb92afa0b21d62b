"""The tables of docs/scaling.md: memory, speed and hours on 1 to 64 GPUs of 80 GB. Arithmetic, not measurements.

    python benchmarks/scaling.py [rows=1] [length=2048] [memory=80] [flops=400e12] [tokens=1e9]

prints Markdown. Models in conf/model, W2.79-A8-KV8, 0.1 task + 2 EAKLD + 0.1 AFD, bf16, the model's own 16-bit self
as the teacher. `flops` is what one GPU reaches, `memory` the GB that it has; machines have eight.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from peer.sides import read_options

from razor import cli
from razor.cli.estimate import case_from
from razor.train.estimate.case import Case
from razor.train.estimate.facts import Skeletons
from razor.train.estimate.memory import memory
from razor.train.estimate.needs import GPU_PROCESS, Estimate, Rate
from razor.train.estimate.speed import flops_per_token

OPTIONS = {"rows": 1, "length": 2048, "memory": 80.0, "flops": 400e12, "tokens": 1e9}
MODELS = {
    "qwen3_0p6b": "Qwen3-0.6B",
    "qwen3_1p7b": "Qwen3-1.7B",
    "qwen3_8b": "Qwen3-8B",
    "llama3_70b": "Llama-3-70B",
}
GPUS = (1, 2, 4, 8, 16, 32, 64)
WAYS: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "fsdp2": {"strategy": "fsdp2", "shard_teacher": True},
    "fsdp2, checkpointing": {"strategy": "fsdp2", "shard_teacher": True, "checkpointing": True},
}


class Model:
    """One model of the tables, in all the ways.

    Args:
        name: an option of conf/model.
        options: of the command line.
    """

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        words = [
            f"model={name}",
            f"data.rows_per_batch={options['rows']}",
            f"data.sequence_length={options['length']}",
        ]
        case, _ = case_from(cli.composed("estimate", [*words, "device=cuda", "evals=none"]))
        self.options = options
        self.cases: dict[str, Case] = {way: replace(case, **change) for way, change in WAYS.items()}
        self.skeletons = Skeletons(case)
        self.facts = {way: self.skeletons.facts(case) for way, case in self.cases.items()}

    def on(self, way: str, gpus: int) -> Estimate:
        """The estimate on so many GPUs."""
        case = replace(self.cases[way], processes=gpus, nodes=-(-gpus // 8), accumulate=gpus)
        held = memory(case, self.facts[way], GPU_PROCESS)
        limit, rate = int(self.options["memory"] * 1e9), Rate(self.options["flops"], "as given")
        return Estimate(case, self.facts[way], held, limit, rate, self.skeletons)


def memory_table(models: dict[str, Model]) -> list[str]:
    """GB of a GPU while training, by model, way and number of GPUs."""
    lines = ["| model | way | " + " | ".join(map(str, GPUS)) + " |", "|---|---|" + "---:|" * len(GPUS)]
    for title, model in models.items():
        for way in WAYS:
            cells = (
                "" if gpus == 1 and way != "ddp" else _cell(model.on(way, gpus), "training") for gpus in GPUS
            )
            lines.append(f"| {title} | {way} | " + " | ".join(cells) + " |")
    return lines


def scoring_table(models: dict[str, Model]) -> list[str]:
    """GB of a GPU while scoring, and GB of a machine's own memory."""
    lines = [
        "| model | ddp | fsdp2, 8 GPUs | fsdp2, 64 GPUs | a machine's own memory |",
        "|---|---:|---:|---:|---:|",
    ]
    for title, model in models.items():
        many = [model.on("ddp", 8), model.on("fsdp2", 8), model.on("fsdp2", 64)]
        cells = [_cell(found, "scoring") for found in many]
        lines.append(f"| {title} | " + " | ".join(cells) + f" | {many[1].host / 1e9:,.0f} |")
    return lines


def speed_table(models: dict[str, Model], options: dict[str, Any]) -> list[str]:
    """Operations a token, tokens a second, hours."""
    head = ["model", "way", "GFLOP a token", "tokens/s a GPU", *(f"hours on {gpus}" for gpus in (1, 8, 64))]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    for title, model in models.items():
        for way in ("fsdp2", "fsdp2, checkpointing"):
            found = model.on(way, 1)
            assert found.tokens_per_second is not None
            hours = [options["tokens"] / found.tokens_per_second / gpus / 3600 for gpus in (1, 8, 64)]
            work = flops_per_token(found.case, found.facts) / 1e9
            name = "plain" if way == "fsdp2" else "checkpointing"
            cells = [f"{work:.1f}", f"{found.tokens_per_second:,.0f}", *(f"{h:,.1f}" for h in hours)]
            lines.append(f"| {title} | {name} | " + " | ".join(cells) + " |")
    return lines


def _cell(found: Estimate, kind: str) -> str:
    moments = {name: sum(parts.values()) for name, parts in found.held.moments.items()}
    scoring = moments.pop("scoring")
    size = scoring if kind == "scoring" else max(moments.values())
    assert found.limit is not None
    return f"{size / 1e9:,.1f}" if size <= found.limit else f"no ({size / 1e9:,.0f})"


def tables(options: dict[str, Any]) -> str:
    """All three, as they stand in docs/scaling.md."""
    models = {title: Model(name, options) for name, title in MODELS.items()}
    parts = [memory_table(models), scoring_table(models), speed_table(models, options)]
    return "\n\n".join("\n".join(lines) for lines in parts)


if __name__ == "__main__":
    print(tables(read_options(sys.argv[1:], OPTIONS)))
