"""Whether memory stays flat when the training text grows: made text of several sizes, one after the other.

For each size a JSONL file of made documents (words of the vocabulary and others by Zipf's law, lengths log-normal,
no two alike) is written to a folder of its own, and then, each in a process of its own,

* `tokenize`: its tokens are cached on disk by `workers` processes;
* `open`: what was cached is checked, held-out documents are drawn, rows are laid out: `Corpus.build`;
* `open_again`: the same when rows were laid out before;
* `iterate`: `batches` micro-batches of 2 rows at positions by chance, over 3 epochs.

    python benchmarks/data_memory.py [sizes=0.1,1] [workers=2] [length=512] [batches=1000] [tokenizer=model]

prints one JSON line: for each size bytes of text, tokens, bytes on disk, and of each phase the peak memory of the
process (MB, resident, with Python and PyTorch in it), the largest of its workers, and seconds; as `ratio` the peak
of the largest size over that of the smallest. `empty` is the peak of a process that loads everything but text. The
folder (`folder=` or a temporary one) is removed; about twice the largest size is needed. `tokenizer=words` has a
token for each word, which takes less than half of the time that a model's takes, for the same bytes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

OPTIONS = {
    "sizes": "0.1,1",
    "workers": 2,
    "length": 512,
    "batches": 1000,
    "model": "smollm2_135m",
    "tokenizer": "model",
    "folder": "",
    "phase": "",
    "file": "",
}
PHASES = ("tokenize", "open", "open_again", "iterate")
HELD_OUT = 48


def make_text(path: Path, size: int, known: list[str]) -> None:
    """A JSONL file of about `size` bytes, four of five words among those that are known."""
    chance = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = list(known)
    words += ["".join(chance.choices(letters, k=chance.randint(2, 9))) for _ in range(len(words) // 4)]
    chance.shuffle(words)
    weights = [1 / (rank + 3) for rank in range(len(words))]
    sentences = [" ".join(chance.choices(words, weights, k=chance.randint(4, 20))) for _ in range(20_000)]
    written = number = 0
    with path.open("w") as stream:
        while written < size:
            count = max(1, round(chance.lognormvariate(2.5, 0.9)))
            text = f"{number}. " + ". ".join(chance.choices(sentences, k=count))
            written += stream.write(json.dumps({"text": text}) + "\n")
            number += 1


def tokenizer_of(options: dict[str, Any]) -> Any:
    """That of the model, or one of its words."""
    from razor import cli

    tokenizer = cli.model_source(cli.composed("size", [f"model={options['model']}"])).tokenizer()
    if options["tokenizer"] == "model":
        return tokenizer
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = dict.fromkeys(["<eos>", "<unk>", *words_of(tokenizer)])
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<eos>", unk_token="<unk>")


def words_of(tokenizer: Any) -> list[str]:
    """Tokens that are words."""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return [text.strip() for text in texts if text.strip().isalpha()]


def phase(options: dict[str, Any]) -> dict[str, Any]:
    """Do one thing, in a process of its own, and say what it took."""
    from razor.data.corpus import Corpus
    from razor.data.reading import Reading
    from razor.data.sources.local_jsonl import LocalJsonl
    from razor.data.steps import StepBatches
    from razor.data.token_store_write import token_store

    tokenizer = tokenizer_of(options)
    source, name = LocalJsonl(options["file"]), options["phase"]
    facts: dict[str, Any] = {}
    workers: list[int] = []
    threading.Thread(target=watch, args=(workers,), daemon=True).start()
    started = time.perf_counter()
    if name == "tokenize":
        facts["tokens"] = sum(token_store(source, tokenizer, options["workers"]).tokens)
    elif name != "empty":
        reading = Reading(on_disk=True)
        rows = Corpus.build(source, tokenizer, options["length"], HELD_OUT, reading=reading).train
        facts |= {"rows": len(rows), "filled": rows.tokens / len(rows) / options["length"]}
        if name == "iterate":
            batches = StepBatches(rows, 3 * len(rows) // 2, 2)
            places = random.Random(1).choices(range(len(batches)), k=options["batches"])
            started = time.perf_counter()
            facts["targets"] = sum(batches[place].tokens for place in places)
    facts["seconds"] = round(time.perf_counter() - started, 1)
    facts["peak_mb"] = peak_mb()
    if name == "tokenize":
        facts["worker_peak_mb"] = max(workers, default=0)
    return facts


def peak_mb(process: int | str = "self") -> int:
    """Most memory a process had resident, MB (not ru_maxrss, which begins with that of the parent)."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    return int(found[0]) * 1024 // 1_000_000 if found else 0


def watch(peaks: list[int]) -> None:
    """Note the peaks of this process's children, again and again."""
    while True:
        peaks.extend(peak_mb(child.pid) for child in multiprocessing.active_children() if child.pid)
        time.sleep(0.5)


def asked(name: str, file: Path, cache: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The facts of a phase."""
    given = {key: options[key] for key in ("workers", "length", "batches", "model", "tokenizer")}
    words = [f"{key}={value}" for key, value in (given | {"phase": name, "file": file}).items()]
    models = Path(os.environ.get("RAZOR_CACHE") or Path.home() / ".cache" / "razor").expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    for there in models.iterdir() if models.is_dir() else ():  # converted models, not tokens
        if there.name not in ("tokens", "layouts") and not (cache / there.name).exists():
            (cache / there.name).symlink_to(there)
    environment = os.environ | {"RAZOR_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, *words], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def measured(size: float, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """All phases of one size; its files are removed again."""
    file, cache = folder / "text.jsonl", folder / "cache"
    make_text(file, int(size * 1e9), words_of(tokenizer_of(options | {"tokenizer": "model"})))
    try:
        facts: dict[str, Any] = {"text_bytes": file.stat().st_size}
        for name in PHASES:
            facts[name] = asked(name, file, cache, options)
            print(f"{size:g} GB {name}: {facts[name]}", file=sys.stderr)
        for kind in ("tokens", "layouts"):
            facts[f"{kind}_bytes"] = sum(
                path.stat().st_size for path in (cache / kind).rglob("*.safetensors")
            )
        return facts
    finally:
        file.unlink()
        shutil.rmtree(cache)


def main() -> None:
    options: dict[str, Any] = dict(OPTIONS)
    for word in sys.argv[1:]:
        key, _, value = word.partition("=")
        options[key] = type(OPTIONS[key])(value)
    if options["phase"]:
        print(json.dumps(phase(options)))
        return
    sizes = sorted(float(size) for size in options["sizes"].split(","))
    with tempfile.TemporaryDirectory(dir=options["folder"] or None, prefix="razor_data_memory_") as name:
        found = {f"{size:g}": measured(size, Path(name), options) for size in sizes}
        empty = asked("empty", Path(name), Path(name) / "cache", options)["peak_mb"]
    first, last = (found[f"{size:g}"] for size in (sizes[0], sizes[-1]))
    ratio = {name: round(last[name]["peak_mb"] / first[name]["peak_mb"], 3) for name in PHASES}
    ratio["text"] = round(last["text_bytes"] / first["text_bytes"], 1)
    print(json.dumps({"empty_mb": empty, "gb": found, "ratio": ratio, "length": options["length"]}))


if __name__ == "__main__":
    main()
