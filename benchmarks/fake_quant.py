"""What quantizing in the forward pass adds to an optimizer step.

One step: `micro_batches` of 2 x 512 tokens through SmolLM2-135M's shape (random weights) in bf16, cross entropy,
backward, AdamW. Three models take their steps in turn in one process:

* `qat`: fp32 latent weights, W2.79-A8-KV8 (every weight quantized once a step, every input and KV at each pass);
* `mixed`: fp32 weights under torch's autocast to bf16, the usual way to train in mixed precision;
* `plain`: weights, gradients and optimizer in bf16, the least that a step can cost.

    python benchmarks/fake_quant.py [quant=mixed_2p79] [rows=2] [length=512] [micro_batches=4] [steps=5]

prints one JSON line: median seconds of each, and the medians of the ratios taken step by step. Run it under the
heap settings of train.py (`make bench` does); both sides get the same.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from contextlib import nullcontext

import torch

from razor import cli
from razor.distill import Batch, CrossEntropy, Objective, Trace
from razor.models import make_student, record

OPTIONS = {
    "quant": "mixed_2p79",
    "model": "smollm2_135m",
    "rows": 2,
    "length": 512,
    "micro_batches": 4,
    "steps": 5,
}


def batch(rows: int, length: int, vocabulary: int) -> Batch:
    ids = torch.randint(0, vocabulary, (rows, length))
    labels = ids.roll(-1, dims=1)
    labels[:, -1] = -100
    positions = torch.arange(length).expand(rows, length).clone()
    return Batch(ids, labels, positions, torch.arange(rows).unsqueeze(1).expand(rows, length).clone())


def optimizer_step(model, optimizer, batches, objective, autocast: bool) -> float:
    started = time.perf_counter()
    for one in batches:
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            trace = record(model, one)
        if autocast:  # its residual stream is fp32; the head's product is in bf16 on every side
            trace = Trace(trace.hidden.bfloat16(), trace.head_weight.bfloat16())
        loss, _ = objective(trace, None, one, objective.observe(None, one))
        (loss / len(batches)).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - started


def main(words: list[str]) -> None:
    given = dict(word.split("=", 1) for word in words)
    options = {key: type(value)(given.pop(key, value)) for key, value in OPTIONS.items()}
    if given:
        sys.exit(f"Unknown option {min(given)}. Choices: {', '.join(OPTIONS)}.")
    torch.manual_seed(0)
    overrides = [f"model={options['model']}", f"quant={options['quant']}", "model.weights=random"]
    config = cli.composed("size", overrides)
    source, recipe = cli.model_source(config), cli.build(config.quant)
    plain = source.load(torch.bfloat16).train()
    models = {
        "plain": plain,
        "mixed": source.load(torch.float32).train(),
        "qat": make_student(plain, recipe.plan(source.skeleton()), torch.bfloat16),
    }
    optimizers = {
        name: torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True) for name, model in models.items()
    }
    objective = Objective({"task": CrossEntropy()}, {"task": 1.0})
    vocabulary = source.config().vocab_size
    batches = [batch(options["rows"], options["length"], vocabulary) for _ in range(options["micro_batches"])]
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for step in range(options["steps"] + 1):
        for name, model in models.items():
            taken = optimizer_step(model, optimizers[name], batches, objective, name == "mixed")
            if step:  # the first warms up
                seconds[name].append(taken)
    medians = {name: round(statistics.median(times), 3) for name, times in seconds.items()}
    ratios = {
        f"qat / {name}": round(
            statistics.median(q / t for q, t in zip(seconds["qat"], seconds[name], strict=True)), 3
        )
        for name in ("mixed", "plain")
    }
    where = {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    every = {name: [round(t, 2) for t in times] for name, times in seconds.items()}
    print(
        json.dumps(
            {"benchmark": "fake_quant", **options, "seconds": medians, **ratios, "all": every, **where}
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
