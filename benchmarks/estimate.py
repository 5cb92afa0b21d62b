"""`razor estimate` against what training really takes: the peak of resident memory, shape by shape.

Each shape is a process of its own, under the heap settings of train.py and with one thread. It estimates itself,
as the main job does before it starts, and then takes three optimizer steps with Lightning, the module and the
optimizer of a run, on random weights and random text with a loss on every token. The peak is the system's count
(`getrusage`, ru_maxrss). Nothing is fitted to a shape.

    python benchmarks/estimate.py [only=tiny,135m_2x512] [steps=3] [threads=1]

prints a line for each shape and then one JSON object: `shapes` lists shape, words, estimated and measured bytes and
their ratio, and the moment that the estimate takes for the largest.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import replace
from typing import Any

import lightning as L
from peer.sides import environment, machine, read_options, versions
from torch.utils.data import DataLoader

from razor import cli
from razor.cli.estimate import case_from
from razor.train.estimate.needs import Rate, estimate
from razor.train.estimate.trial import random_batch, trial
from razor.train.run import quieten

OPTIONS = {"only": "", "steps": 3, "threads": 1}

CHECKPOINTED = "trainer.gradient_checkpointing=true"
QWEN = "model=qwen3_0p6b model.architecture.num_hidden_layers"
SHAPES = {
    "tiny": "model=tiny_llama",
    "tiny_8x1024": "model=tiny_qwen3 data.rows_per_batch=8 data.sequence_length=1024",
    "135m_1x256": "data.rows_per_batch=1",
    "135m_2x256": "",
    "135m_2x512": "data.sequence_length=512",
    "135m_4x512": "data.rows_per_batch=4 data.sequence_length=512",
    "135m_1x2048": "data.rows_per_batch=1 data.sequence_length=2048",
    "135m_4x512_checkpointed": f"data.rows_per_batch=4 data.sequence_length=512 {CHECKPOINTED}",
    "135m_1x2048_checkpointed": f"data.rows_per_batch=1 data.sequence_length=2048 {CHECKPOINTED}",
    "135m_2x256_fp32": "trainer.compute_dtype=float32",
    "135m_2x512_accumulate_2": "data.sequence_length=512 trainer.accumulate=2",
    "135m_2x512_cached": "data.sequence_length=512 teacher=cached distill=kld",
    "135m_2x512_attention": "data.sequence_length=512 distill=eakld_afd_attn",
    "135m_2x512_w2": "data.sequence_length=512 quant=w2",
    "135m_8_layers_4x512": "model.architecture.num_hidden_layers=8 data.rows_per_batch=4 data.sequence_length=512",
    "0.6b_4_layers_2x256": f"{QWEN}=4",
    "0.6b_4_layers_2x512_32768_words": f"{QWEN}=4 model.architecture.vocab_size=32768 data.sequence_length=512",
    "llama_wide_3_layers": "model.architecture.num_hidden_layers=3 model.architecture.hidden_size=2304 "
    "model.architecture.num_attention_heads=36 model.architecture.num_key_value_heads=12 "
    "model.architecture.intermediate_size=6144 data.sequence_length=512",
}
"""Words after `razor estimate trainer=cpu`."""


def child(job: dict[str, Any]) -> dict[str, Any]:
    """Estimate a shape, train it, and say both."""
    config = cli.composed(
        "estimate", [*job["words"].split(), "trainer=cpu", "model.weights=random", "evals=none"]
    )
    quieten()
    case, settings = case_from(config)
    found = estimate(replace(case, steps=job["steps"]), Rate(1.0, "not asked"))
    module = trial(case, settings, job["steps"])
    vocabulary = case.model.config().vocab_size
    count = job["steps"] * case.accumulate
    batches = [random_batch(case.rows, case.length, vocabulary, case.cached) for _ in range(count)]
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=job["steps"],
        max_epochs=-1,
        accumulate_grad_batches=case.accumulate,
        gradient_clip_val=settings.clip,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
    )
    trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "estimated": found.memory,
        "measured": peak,
        "moment": found.held.moment,
        "parts": found.held.parts,
    }


def measured(name: str, words: str, options: dict[str, Any]) -> dict[str, Any]:
    """A shape, in a process of its own."""
    job = json.dumps({"words": words, "steps": options["steps"]})
    done = subprocess.run(
        [sys.executable, __file__, job],
        env=environment(options["threads"]) | {"PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{done.stderr}\nThe shape {name} could not be trained; see above.")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"shape": name, "words": words} | found | {"ratio": found["estimated"] / found["measured"]}


def main(words: list[str]) -> dict[str, Any]:
    options = read_options(words, OPTIONS)
    wanted = options["only"].split(",") if options["only"] else list(SHAPES)
    if unknown := [name for name in wanted if name not in SHAPES]:
        sys.exit(f"only={unknown[0]} is no shape. Choices: {', '.join(SHAPES)}.")
    rows = []
    for name in wanted:
        row = measured(name, SHAPES[name], options)
        print(
            f"{name:38s} {row['estimated'] / 1e9:6.2f} GB estimated, {row['measured'] / 1e9:6.2f} measured, "
            f"ratio {row['ratio']:.3f} ({row['moment']})",
            flush=True,
        )
        rows.append(row)
    worst = max(abs(row["ratio"] - 1) for row in rows)
    return {
        "benchmark": "estimate",
        **options,
        "worst": worst,
        "shapes": rows,
        "machine": machine(options["threads"]),
        "versions": versions("torch", "transformers", "lightning", "razor-qad"),
    }


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1].startswith("{"):
        print(json.dumps(child(json.loads(sys.argv[1]))))
    else:
        print(json.dumps(main(sys.argv[1:])))
