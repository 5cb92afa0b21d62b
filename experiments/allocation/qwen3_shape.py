"""A plan of whole matrices all the way into llama.cpp: a small model of Qwen3's kind, allocated and distilled.

    python experiments/allocation/qwen3_shape.py [budget=2.79] [steps=300] [student_steps=150] [text=docs]

SmolLM2's rows are no multiples of 256 and hold no ternary type of GGUF; Qwen3's are. So a model of four layers, 256
wide, learns this repository's documents byte by byte, `razor allocate fits=gguf` finds its plan, a student of that
plan is distilled from it, and benchmarks/parity.py holds the file in llama.cpp against the student: codes, logits,
perplexity. Every step is a command of its own with its output on the screen; a run that is there is not made again.
The last line of each step is kept in qwen3_shape.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

import study_making  # noqa: E402

from razor.cli.guard import guarded  # noqa: E402
from razor.errors import RazorError  # noqa: E402
from razor.storage import REPORT, atomic_write  # noqa: E402

SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_attention_heads": 4,
    "head_dim": 64,
    "initializer_range": 0.02,
}
DEFAULTS = {
    "budget": "2.79",  # code bits of the decoder in the file, scales included
    "steps": "300",  # of the teacher
    "student_steps": "150",
    "text": "docs",
    "seed": "0",
    "runs": "runs/qwen3_shape",
    "result": str(HERE / "qwen3_shape.json"),
}


def commands(options: dict[str, str]) -> tuple[list[str], list[str], list[str], list[str]]:
    """Words for teacher, plan, student and comparison."""
    runs = Path(options["runs"])
    text = ["data=local_text", f"data.source.path={options['text']}", "data.held_out=24"]
    text += ["data.sequence_length=256", f"seed={options['seed']}"]
    training = ["data.rows_per_batch=8", "trainer=cpu", "evals=none", "logger=csv"]
    shape = [f"model.architecture.{key}={value}" for key, value in SHAPE.items()]
    budget = [f"trainer.max_steps={options['steps']}", "trainer.learning_rate=1e-3"]
    teacher = ["model=tiny_qwen3", "model.group=64", *shape, *text, *training, *budget]
    teacher += ["quant=w16_a16", "distill=ce", "export=[dense]"]
    small = ["model=hub", f"model.id={runs / 'teacher' / 'exports' / 'dense'}", *text]
    found = ["fits=gguf", f"budget={options['budget']}", "score.rows=32", "check=24", f"out={runs / 'found'}"]
    recipe = ["quant=plan", f"quant.plan={runs / 'found' / 'plan.yaml'}", "start=gptq", "start.rows=32"]
    recipe += ["distill=small_budget", "trainer.learning_rate=3e-4"]
    student = [*small, *training, *recipe, f"trainer.max_steps={options['student_steps']}"]
    return (
        study_making.train(teacher, runs / "teacher"),
        ["-m", "razor", "allocate", *small, *found],
        study_making.train(student, runs / "student"),
        ["benchmarks/parity.py", "cases=", f"run={runs / 'student'}"],
    )


def main(words: Sequence[str]) -> int:
    """Return the exit code: 0, 2 for bad input, 130 after Ctrl-C."""

    def job() -> int:
        options = study_making.options_of(words, DEFAULTS)
        for key in ("steps", "student_steps", "seed"):
            study_making.numbers(options, key)
        runs = ROOT / options["runs"]
        teacher, plan, student, parity = commands(options)
        steps = (runs / "teacher" / REPORT, teacher), (runs / "found" / "plan.yaml", plan)
        for done, command in (*steps, (runs / "student" / REPORT, student)):
            if not done.is_file():
                study_making.done(command)
        compared = subprocess.run([sys.executable, *parity], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if compared.returncode:
            raise RazorError(f"benchmarks/parity.py ended with code {compared.returncode}.")
        found = json.loads((runs / "found" / "allocation.json").read_text())
        keys = ("code_bits", "bits_per_weight", "bytes", "chosen", "types", "predicted", "kl")
        report = json.loads((runs / "student" / REPORT).read_text())
        rows = {row["name"]: {key: row[key] for key in ("kl", "perplexity")} for row in report["rows"]}
        kept = {"command": ["python", "experiments/allocation/qwen3_shape.py", *words]}
        kept |= {"plan": {key: found[key] for key in keys}, "student": rows, "hardware": report["hardware"]}
        with atomic_write(Path(options["result"])) as temporary:
            text = json.dumps(kept | {"parity": json.loads(compared.stdout)}, indent=1)
            temporary.write_text(text + "\n")
        print(compared.stdout, end="")
        return 0

    return guarded(job, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
