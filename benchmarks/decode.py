"""Generation in llama.cpp by type of GGUF: tokens a second, bytes, memory, each beside the first.

Files of one shape (Qwen3-0.6B's, random weights) in BF16, F16, Q4_0, TQ2_0, TQ1_0 and, mixed by whole matrices,
2.79 and 1.88 nominal bits; `found_2.79` and `found_1.88` are plans that `razor allocate fits=gguf` finds, of so
many real bits in a decoder's weight (by squared error: random weights have no text to be judged on). A process for
each, all waiting for their turn, so that no two compute at once; in a round each reads a prompt of `prompt` tokens
and then writes `tokens` tokens one by one.

    python benchmarks/decode.py [model=qwen3_0p6b] [weights=random] [tokens=128] [prompt=512] [rounds=5]
        [threads=2] [cases=bf16,f16,q4_0,tq2_0,tq1_0,2.79,1.88] [vocabulary=FOLDER] [keep=FOLDER]
    python benchmarks/decode.py cases=q4_0,tq1_0,found_2.79,found_1.88

prints one JSON line: medians, and ratios to the first case round by round, beside the ratio of the files' bytes,
which is the limit where reading memory is what takes the time. `vocabulary` names a folder with another tokenizer
for the files (the model's own; random weights come with bytes alone, and 151,669 words take some MB). `keep` keeps
the files, and uses those that are there. RAZOR_LLAMA_CPP chooses another llama.cpp than the package's.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peer.sides import machine, read_options

FOUND = ["quant.fits=gguf", "score=weight_error"]
CASES = {
    "bf16": ("w16", []),
    "f16": ("w16", ["quant.weights.dtype=float16", "quant.embedding.dtype=float16"]),
    "q4_0": ("w4", []),
    "tq2_0": ("w1p58", ["export.gguf.ternary=tq2_0"]),
    "tq1_0": ("w1p58", []),
    "2.79": ("matrix_2p79", []),
    "1.88": ("matrix_1p88", []),
    "found_2.79": ("auto_2p79", FOUND),
    "found_1.88": ("auto_1p88", FOUND),
}
OPTIONS = {
    "model": "qwen3_0p6b",
    "weights": "random",
    "tokens": 128,
    "prompt": 512,
    "rounds": 5,
    "threads": 2,
    "cases": ",".join(case for case in CASES if not case.startswith("found")),
    "vocabulary": "",
    "keep": "",
}


def serve(file: str, options: dict[str, Any], line: Any) -> None:
    """Open a file, then answer each call with the seconds of a prompt and of the tokens after it."""
    from razor.models.llama_runtime import LlamaRuntime

    length = options["prompt"] + options["tokens"]
    with LlamaRuntime(Path(file), context=length, kv="q8_0", threads=options["threads"]) as llama:
        words = [(7 * i) % 256 for i in range(length)]
        line.send("open")
        while line.recv():
            started = time.perf_counter()
            llama.read(words[: options["prompt"]])
            prompt = time.perf_counter() - started
            started = time.perf_counter()
            for place in range(options["prompt"], length):
                llama.read(words[place : place + 1], place)
            line.send({"prompt": prompt, "write": time.perf_counter() - started})
        line.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def make(folder: str, case: str, options: dict[str, Any]) -> None:
    """Quantize by rounding and export."""
    from razor import cli

    sys.stdout = sys.stderr  # the line of JSON stands alone
    quant, words = CASES[case]
    exports = [word for word in words if word.startswith("export.")]
    model = [f"model={options['model']}", f"model.weights={options['weights']}", f"quant={quant}"]
    packed = Path(folder) / f"{case}-packed"
    cli.VERBS["quantize"]([*model, *(w for w in words if w not in exports), f"out={packed}"])
    if options["vocabulary"]:
        for path in Path(options["vocabulary"]).glob("*token*"):
            shutil.copyfile(path, packed / path.name)
        (packed / "razor.json").unlink()  # whose checksums are those of the other tokenizer
    cli.VERBS["export"]([f"run={packed}", "export=gguf", f"out={Path(folder) / case}", *exports])
    shutil.rmtree(packed)


def main(words: list[str]) -> None:
    options = read_options(words, OPTIONS)
    cases = options["cases"].split(",")
    if not set(cases) <= set(CASES):
        sys.exit(f"cases='{options['cases']}'. Choices: {', '.join(CASES)}.")
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options["keep"] or temporary
        home = Path(folder) / f"{options['model']}-{options['weights']}"
        for case in cases:
            if not (home / case / "gguf").is_dir():
                maker = context.Process(target=make, args=(str(home), case, options))
                maker.start()
                maker.join()
                if maker.exitcode:
                    sys.exit(f"{case} could not be written, see above.")
        files = {case: next((home / case / "gguf").glob("*.gguf")) for case in cases}
        lines, found = {}, {case: {"prompt": [], "write": []} for case in cases}
        for case, file in files.items():
            lines[case], theirs = context.Pipe()
            context.Process(target=serve, args=(str(file), options, theirs), daemon=True).start()
            lines[case].recv()
        for turn in range(options["rounds"] + 1):
            for case in cases:
                lines[case].send(True)
                times = lines[case].recv()
                if turn:  # the first warms up
                    for key, value in times.items():
                        found[case][key].append(value)
        for case in cases:
            lines[case].send(False)
            found[case] |= {"peak": lines[case].recv(), "bytes": files[case].stat().st_size}
    say(options, found)


def say(options: dict[str, Any], found: dict[str, dict[str, Any]]) -> None:
    first = next(iter(found.values()))
    cases = {}
    for case, numbers in found.items():
        faster = [b / a for a, b in zip(numbers["write"], first["write"], strict=True)]
        smaller = first["bytes"] / numbers["bytes"]
        speed = statistics.median(faster)
        cases[case] = {
            "MB": round(numbers["bytes"] / 1e6, 1),
            "tokens_per_second": round(options["tokens"] / statistics.median(numbers["write"]), 2),
            "prompt_tokens_per_second": round(options["prompt"] / statistics.median(numbers["prompt"]), 1),
            "peak_MB": round(numbers["peak"] / 1e6),
            "speed ratio": round(speed, 2),
            "bytes ratio": round(smaller, 2),
            "speed / bytes": round(speed / smaller, 2),
        }
    facts = machine(options["threads"]) | {"llama.cpp": _version()}
    print(json.dumps({"benchmark": "decode", **options, "cases": cases, "machine": facts}), flush=True)


def _version() -> str:
    from razor.models.llama_library import version

    return version()


if __name__ == "__main__":
    main(sys.argv[1:])
