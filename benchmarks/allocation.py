"""Time and memory of the scores of `razor allocate`.

A score runs in a process of its own, one after the other: the model is loaded, quantized around its open weights
(A8-KV8) and measured as `razor allocate` does it, on random tokens, which cost what words do.

    python benchmarks/allocation.py [model=smollm2_135m] [weights=random] [threads=1] [rows=4] [length=256]
        [scores=weight_error,activation_error,fisher,kl] [options=ternary,int2,int3,int4] [matrices=8]

prints one JSON line. `seconds` are wall clock, `cpu_seconds` this process's own, for a machine that is shared;
`per_row` what a further row of text costs. `kl` is measured on `matrices` matrices spread over the model and one
row, and `all_cpu_seconds` says what all of them would take. `peak` is resident memory at its highest, `model` the
bytes of the model's tensors, `beside` the difference less what Python and torch take before anything is loaded;
`matrix` is the largest matrix in fp32 and `gram` its Gram matrix, beside which this stands.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import time
from typing import Any

from peer.sides import machine, read_options, versions

OPTIONS = {
    "model": "smollm2_135m",
    "weights": "",  # the model's own; random: of its shape
    "threads": 1,
    "rows": 4,
    "length": 256,
    "scores": "weight_error,activation_error,fisher,kl",
    "options": "ternary,int2,int3,int4",
    "matrices": 8,
}


def measured(score: str, options: dict[str, Any], line: Any) -> None:
    """One score: what it took, sent through `line`."""
    import torch

    from razor import cli
    from razor.allocate.subject import Subject
    from razor.cli.allocate import settled, space_of
    from razor.distill import Batch

    torch.set_num_threads(options["threads"])
    words = [f"model={options['model']}", "trainer=cpu", f"score={score}", f"options=[{options['options']}]"]
    weights = [f"model.weights={options['weights']}"] if options["weights"] else []
    config = cli.composed("allocate", [*words, *weights])
    automatic, source = settled(config), cli.model_source(config)
    source.prepare()
    space = space_of(config, source, automatic)
    rows = 0 if score == "weight_error" else 1 if score == "kl" else options["rows"]
    vocabulary = source.skeleton().config.vocab_size

    def text(count: int) -> list[Batch]:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(vocabulary, (count, options["length"]), generator=generator)
        places = torch.arange(options["length"]).expand(count, -1).contiguous()
        documents = torch.arange(count).unsqueeze(1).expand_as(ids).contiguous()
        labels = torch.where(places < options["length"] - 1, ids.roll(-1, 1), -100)
        each = max(1, 512 // options["length"])
        parts = zip(*(x.split(each) for x in (ids, labels, places, documents)), strict=True)
        return [Batch(*part) for part in parts]

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    subject = Subject.of(space, lambda: source.load(torch.bfloat16), torch.bfloat16, text)
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    tensors = {t.data_ptr(): t.nbytes for t in (*subject.model.parameters(), *subject.model.buffers())}
    automatic.score.rows = rows
    names, count = list(space.targets), options["matrices"]
    wanted = (
        names if score != "kl" else [names[i * len(names) // count] for i in range(min(count, len(names)))]
    )
    done = frozenset(names) - frozenset(wanted)
    started, cpu = time.perf_counter(), time.process_time()
    found = sum(1 for _ in automatic.score.measure(subject, done))
    largest = max(
        (target.site.shape for target in space.targets.values()), key=lambda shape: shape[0] * shape[1]
    )
    line.send(
        {
            "rows": rows,
            "matrices": found,
            "of": len(names),
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - cpu,
            "before": before,
            "loaded": loaded,
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "model": sum(tensors.values()),
            "matrix": 4 * largest[0] * largest[1],
            "gram": 4 * max(target.site.shape[1] for target in space.targets.values()) ** 2,
        }
    )


def said(score: str, told: dict[str, Any]) -> dict[str, Any]:
    """The figures of one score, in seconds and MB."""
    whole = told["cpu_seconds"] * told["of"] / max(1, told["matrices"])
    found = {key: round(told[key], 2) for key in ("rows", "matrices", "of", "seconds", "cpu_seconds")}
    found["all_cpu_seconds"] = round(whole, 1)
    found["per_row"] = round(whole / told["rows"], 2) if told["rows"] else None
    beside = told["peak"] - told["before"] - told["model"]
    sizes = {key: told[key] for key in ("peak", "model", "matrix", "gram")} | {"beside": beside}
    return found | {f"{key}_MB": round(value / 1e6, 1) for key, value in sizes.items()}


def main(words: list[str]) -> None:
    options = read_options(words, OPTIONS)
    context = multiprocessing.get_context("spawn")
    scores = {}
    for score in options["scores"].split(","):
        line, theirs = context.Pipe()
        worker = context.Process(target=measured, args=(score, options, theirs))
        worker.start()
        theirs.close()
        try:
            scores[score] = said(score, line.recv())
        except EOFError:
            sys.exit(f"score={score} failed, see above.")
        worker.join()
        print(json.dumps({score: scores[score]}), file=sys.stderr, flush=True)
    facts = machine(options["threads"]) | versions("torch", "transformers")
    print(json.dumps({"benchmark": "allocation", **options, "scores": scores, "machine": facts}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
