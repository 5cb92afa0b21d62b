"""Does a GGUF compute what the student computes? Case by case, in llama.cpp itself.

A case is a packed model, made here by plain rounding (`cases=`), from random weights in a real shape, or a run of
yours (`run=`). It is exported twice: with every weight as fp32, where llama.cpp has to give the logits of the fp32
model within 1e-2, and as it is meant, where int8 activations move predictions. Every code and every scale is read
back and compared. Text then shows what a user sees: perplexity of the file in llama.cpp, with keys and values as
q8_0, beside the student's own, in bf16 with the activations and KV cache of its plan. For a run that is the run's
own held-out text, response tokens alone, as in its report; otherwise that of `text=`.

    python benchmarks/parity.py [cases=tiny_qwen3:matrix_2p79,smollm2_135m:w4,qwen3_0p6b:matrix_2p79] [run=RUN,RUN]
        [text='docs/*.md'] [rows=8] [length=256] [f32=true]

prints a line of JSON for each case: `f32.largest_logit_difference` (goal 1e-2), `kl_per_token` of the file beside
`kl_of_int8_activations` (nats, 64 tokens), `same_top1` (percent), `perplexity` of student and file, their ratio
(goal within 0.5 % for a trained student; plain rounding to few bits gives a model that any rounding changes) and
its standard error from the differences token by token, `bits_per_weight`, `seconds` for writing and proving, and
the peak of resident memory so far. A Qwen3 shape has random weights: its codes are compared, and its perplexity
left out.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer.sides import machine, read_options, versions

from razor import cli
from razor.cli.standing import saved_config
from razor.cli.teacher import teaching
from razor.data.text_file import files_of
from razor.export.compressed import Compressed
from razor.export.exporter import export
from razor.export.folder import save
from razor.export.gguf import GGUF
from razor.export.manifest import read_manifest
from razor.models.llama_process import LlamaProcess
from razor.recipe import Recipe, quantize
from razor.storage import REPORT
from razor.train.run import quieten

CASES = (
    "tiny_qwen3:matrix_2p79,smollm2_135m:w4,smollm2_135m:mixed_2p79,smollm2_135m:w1p58,qwen3_0p6b:matrix_2p79"
)
OPTIONS = {"cases": CASES, "run": "", "text": "", "rows": 8, "length": 256, "f32": True}
TEXT = "docs/*.md"


def rounded(model: str, quant: str, folder: Path) -> Compressed:
    """A model, rounded without training, packed and opened."""
    random = ["model.weights=random"] if model.startswith("qwen3") else []
    config = cli.composed("quantize", [f"model={model}", f"quant={quant}", f"out={folder}", *random])
    source = cli.model_source(config)
    source.prepare()
    recipe = Recipe(quant, cli.build(config.quant))
    student = quantize(source.load(torch.bfloat16), recipe).eval()
    save(student, source.tokenizer(), folder, {"model": model, "quant": quant})
    return Compressed.open(folder)


def exported(compressed: Compressed, out: Path, **options: Any) -> tuple[Path, dict[str, Any], float]:
    """The file, what its proof says, and the seconds it took."""
    start = time.perf_counter()
    with redirect_stdout(sys.stderr):
        folder = export(compressed, {"gguf": GGUF(runtime=True, **options)}, out)["gguf"]
    seconds = time.perf_counter() - start
    (path,) = folder.glob("*.gguf")
    return path, read_manifest(folder)["proof"], seconds


@dataclass(frozen=True)
class Text:
    """One text: token ids [T], and which of the tokens after the first a model is asked for, [T - 1] bool."""

    ids: torch.Tensor
    asked: torch.Tensor


def texts_of(compressed: Compressed, pattern: str, rows: int, length: int) -> list[Text]:
    """`rows` times `length` tokens of text files, one after another."""
    ids: list[int] = []
    for path in files_of(pattern, (".txt", ".md")):
        ids += compressed.tokenizer(path.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
        if len(ids) >= rows * length:
            break
    table = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)[:rows]
    return [Text(row, torch.ones(length - 1, dtype=torch.bool)) for row in table]


def held_out(run: Path) -> list[Text]:
    """The documents that a run was scored on."""
    found = []
    for batch in teaching(saved_config(run)).corpus().held_out.batches(1):
        for document in batch.documents[batch.documents >= 0].unique():
            here = batch.documents[0] == document
            found.append(Text(batch.input_ids[0, here], batch.valid[0, here][:-1]))
    return found


def entropies(logits: torch.Tensor, text: Text) -> torch.Tensor:
    """Cross entropies of the asked tokens, nats."""
    every = torch.nn.functional.cross_entropy(logits[:-1].float(), text.ids[1:], reduction="none")
    return every[text.asked].double()


@torch.no_grad()
def perplexities(compressed: Compressed, path: Path, texts: list[Text]) -> dict[str, float]:
    """Of the student as it was trained, and of the file in llama.cpp with an 8-bit KV cache."""
    own, others = [], []
    with LlamaProcess(path, context=max(len(text.ids) for text in texts), kv="q8_0") as llama:
        for text in texts:
            student = compressed.model(input_ids=text.ids.unsqueeze(0), use_cache=False).logits[0]
            own.append(entropies(student, text))
            others.append(entropies(torch.from_numpy(np.array(llama.logits(text.ids.tolist()))), text))
    student, file = torch.cat(own), torch.cat(others)
    scores = {"student": float(student.mean().exp()), "llama_cpp": float(file.mean().exp())}
    error = float((file - student).std()) / len(file) ** 0.5
    ratio = scores["llama_cpp"] / scores["student"]
    return scores | {"ratio": ratio, "ratio_stderr": ratio * error, "tokens": len(file)}


def measure(name: str, compressed: Compressed, given: dict[str, Any], home: Path) -> dict[str, Any]:
    """One case."""
    random = not given["run"] and name.startswith(("qwen3", "tiny"))
    steps = json.loads((Path(name) / REPORT).read_text())["steps"] if given["run"] else 0
    found: dict[str, Any] = {"benchmark": "parity", "case": name, "random_weights": random, "steps": steps}
    found |= {"model": compressed.about["model"], "quant": compressed.about["quant"]}
    if given["f32"] and not (random and name.startswith("qwen3")):  # gigabytes that first layers spare us
        path, found["f32"], _ = exported(compressed, home / "f32", dtype="f32")
        path.unlink()
    path, proof, seconds = exported(compressed, home / "out")
    found |= proof | {"bytes": path.stat().st_size, "seconds": seconds}
    found["bits_per_weight"] = 8 * found["bytes"] / compressed.size.total.parameters
    if not random:
        own = given["run"] and not given["text"]
        pattern = str(given["text"] or TEXT)
        sizes = int(given["rows"]), int(given["length"])
        texts = held_out(Path(name)) if own else texts_of(compressed, pattern, *sizes)
        found["perplexity"] = perplexities(compressed, path, texts)
    path.unlink()
    found["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return found | {"machine": machine(torch.get_num_threads()) | versions("torch", "gguf", "xllamacpp")}


def cases(given: dict[str, Any], home: Path) -> Iterator[tuple[str, Compressed]]:
    if given["run"]:
        for run in str(given["run"]).split(","):
            yield run, Compressed.open(Path(run))
        return
    for name in str(given["cases"]).split(","):
        model, _, quant = name.partition(":")
        yield name, rounded(model, quant, home / name.replace(":", "-"))


def main(words: list[str]) -> None:
    given = read_options(words, OPTIONS)
    quieten()
    with tempfile.TemporaryDirectory(prefix="razor-parity-") as folder:
        for index, (name, compressed) in enumerate(cases(given, Path(folder))):
            print(json.dumps(measure(name, compressed, given, Path(folder) / str(index))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
