"""Writes the tables of docs/exports.md and docs/allocation.md from the lines of JSON in this folder.

    python benchmarks/results/tables.py            # or make table

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`. Nobody edits it by hand: the benchmark is
run again, its lines are put into NAME's file here, and this is run.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent.parent / "docs"
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
BUILDS = {"decode_avx2": "wheel, AVX2", "decode_avx512": "AVX-512 build"}
FILES = {
    "bf16": "BF16",
    "f16": "F16",
    "q4_0": "Q4_0 (`w4`)",
    "tq2_0": "TQ2_0 (`w1p58`)",
    "tq1_0": "TQ1_0 (`w1p58`)",
    "2.79": "2.79 bits (`matrix_2p79`)",
    "1.88": "1.88 bits (`matrix_1p88`)",
}
SIDES = {
    "dense": "16-bit model",
    "int4": "`hold=int4`",
    "decoded": "`hold=decoded`",
    "packed": "`hold=packed`",
}
NOT_YET = "(Not run yet.)\n"
Lines = list[dict[str, Any]]


def lines(name: str) -> Lines:
    """What a benchmark printed, line by line."""
    return [json.loads(line) for line in (HERE / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column is text."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows)) + "\n"


def hardware(measured: Lines) -> str:
    """Where the numbers come from, in a line below the table."""
    machines = {(m["processor"], m["cores"], m["threads"]) for m in (line["machine"] for line in measured)}
    return "; ".join(f"{name}, {cores} cores, {threads} threads" for name, cores, threads in sorted(machines))


def packed_model() -> str:
    measured = lines("packed_model")
    head = [
        "",
        "tokens/s",
        "against 16 bits",
        "memory of weights, MB",
        "against 16 bits",
        "load, s",
        "prompt, s",
    ]
    rows = []
    for line in measured:
        task = f"**{line['model']}, `{line['quant']}`, {line['tokens']} tokens after {line['prompt']}**"
        rows.append([task, *[""] * (len(head) - 1)])
        for side, label in SIDES.items():
            found = line["sides"][side]
            spread = f"{found['tokens_per_second']} ({min(found['all'])} to {max(found['all'])})"
            ratios = f"{found['speed / dense']:.2f}", f"{found['tensors / dense']:.2f}"
            times = f"{found['load_seconds']:.1f}", f"{found['prompt_seconds']:.2f}"
            rows.append([label, spread, ratios[0], str(found["tensors_MB"]), ratios[1], *times])
    rounds = "; ".join(f"{line['model']} {line['rounds']}" for line in measured)
    told = f"{hardware(measured)}, torch {measured[0]['machine']['torch']}; medians of rounds: {rounds}"
    return f"{markdown(head, rows)}\n({told}; the ratio is the median of the ratios round by round.)\n"


def decode() -> str:
    measured = {name: lines(name)[-1] for name in BUILDS if (HERE / f"{name}.jsonl").is_file()}
    first = next(iter(measured.values()))
    head = ["", "MB", "bytes ratio"]
    for name, line in measured.items():
        version = line["machine"]["llama.cpp"]
        head += [f"tokens/s, {BUILDS[name]} (llama.cpp {version})", "times BF16", "of the bytes ratio"]
    head += ["prompt, tokens/s", "peak, MB"]
    rows = []
    for case, label in FILES.items():
        row = [label, str(first["cases"][case]["MB"]), str(first["cases"][case]["bytes ratio"])]
        for line in measured.values():
            found = line["cases"].get(case)
            row += ["-"] * 3 if found is None else _speed(found)
        read = [
            line["cases"].get(case, {}).get("prompt_tokens_per_second", "-") for line in measured.values()
        ]
        rows.append([*row, " / ".join(map(str, read)), str(first["cases"][case]["peak_MB"])])
    task = (
        f"{first['tokens']} tokens one by one after a prompt of {first['prompt']}, {first['rounds']} rounds"
    )
    return f"{markdown(head, rows)}\n({task}; {hardware(list(measured.values()))}.)\n"


def _speed(found: dict[str, Any]) -> list[str]:
    return [
        str(found["tokens_per_second"]),
        str(found["speed ratio"]),
        f"{100 * found['speed / bytes']:.0f} %",
    ]


def parity() -> str:
    head = [
        "model",
        "bits per weight",
        "fp32 logits within",
        "KL in llama.cpp",
        "int8 activations alone",
        "perplexity: student",
        "llama.cpp",
        "ratio",
        "tokens",
    ]
    measured = lines("parity")
    rows = []
    for line in measured:
        kept = (line["f32"] if "f32" in line else line["fp32_head"])["largest_logit_difference"]
        read = line.get("perplexity", {})
        made = "random weights" if line["random_weights"] else "plainly rounded"
        name = f"{line['model']} `{line['quant']}`, " + (f"{line['steps']} steps" if line["steps"] else made)
        row = [name, f"{line['bits_per_weight']:.2f}", f"{kept:.0e}", f"{line['kl_per_token']:.2g}"]
        row.append(f"{line['kl_of_int8_activations']:.2g}" if "kl_of_int8_activations" in line else "")
        if read:
            ratio = f"{read['ratio']:.4f} ± {read['ratio_stderr']:.4f}"
            row += [f"{read['student']:.5g}", f"{read['llama_cpp']:.5g}", ratio, str(read["tokens"])]
        rows.append(row + [""] * (len(head) - len(row)))
    return f"{markdown(head, rows)}\n({hardware(measured)}.)\n"


def decode_found() -> str:
    """Plans of `razor allocate fits=gguf` beside Q4_0 and an all-ternary file."""
    if not (HERE / "decode_found.jsonl").is_file():
        return NOT_YET
    line = lines("decode_found")[-1]
    names = FILES | {f"found_{width}": f"found, {width} bits in the decoder" for width in ("2.79", "1.88")}
    head = [
        "Qwen3-0.6B's shape",
        "MB",
        "times smaller than Q4_0",
        "tokens/s",
        "times Q4_0",
        "prompt, tokens/s",
    ]
    rows = []
    for case, found in line["cases"].items():
        figures = ("MB", "bytes ratio", "tokens_per_second", "speed ratio", "prompt_tokens_per_second")
        rows.append([names[case], *(str(found[key]) for key in figures)])
    task = f"{line['tokens']} tokens one by one after a prompt of {line['prompt']}, {line['rounds']} rounds"
    version = line["machine"]["llama.cpp"]
    return f"{markdown(head, rows)}\n({task}; llama.cpp {version}; {hardware([line])}.)\n"


def allocation() -> str:
    """Time and memory of each score."""
    if not (HERE / "allocation.jsonl").is_file():
        return NOT_YET
    head = ["model", "score", "rows", "matrices", "CPU seconds", "all matrices", "a further row"]
    head += ["peak, MB", "the model, MB", "beside it, MB", "largest matrix in fp32, MB"]
    measured, rows = lines("allocation"), []
    for line in measured:
        for score, found in line["scores"].items():
            row = [line["model"], f"`{score}`", str(found["rows"]), f"{found['matrices']} of {found['of']}"]
            per_row = "" if found["per_row"] is None else f"{found['per_row']:.3g} s"
            row += [f"{found['cpu_seconds']:.3g} s", f"{found['all_cpu_seconds']:.3g} s", per_row]
            sizes = (f"{found[f'{key}_MB']:,.0f}" for key in ("peak", "model", "beside", "matrix"))
            rows.append([*row, *sizes])
    lengths = ", ".join(sorted({str(line["length"]) for line in measured}))
    return f"{markdown(head, rows)}\n(Rows of {lengths} tokens; {hardware(measured)}.)\n"


TABLES: dict[str, Callable[[], str]] = {
    "packed_model": packed_model,
    "decode": decode,
    "parity": parity,
    "decode_found": decode_found,
    "allocation": allocation,
}


def written(text: str) -> str:
    """A document with its tables made anew; a table without a maker ends the program."""
    return BLOCK.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)


def main() -> None:
    for path in sorted(DOCS.glob("*.md")):
        old = path.read_text(encoding="utf-8")
        new = written(old)
        if new != old:
            path.write_text(new, encoding="utf-8")
            print(f"{path.name}: written again", file=sys.stderr)


if __name__ == "__main__":
    main()
