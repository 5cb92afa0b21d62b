"""How fast a teacher writes text, against a plain loop around Transformers' `generate(do_sample=True)`.

One model in bf16 writes for all sides in turn, in one process, with the same draw (temperature 1, the 256
likeliest tokens, of these the nucleus of 0.95). Two jobs:

* `full`: `texts` texts of exactly `tokens` tokens, from one token on. Nobody gains from texts that end early.
  `generate` is one call; `razor` is `razor.data.sampling.write` with as many texts at once, `razor_2x` with twice
  as many (64, the default of `data=teacher_made`, where `texts` is 32); `llama_cpp`, with `gguf=FILE`, is the same
  job from a GGUF through xllamacpp, which must be installed.
* `chat`: `texts` chats as `data=teacher_made` makes them, user turn and answer, by `generate_chat` and
  `razor_chat`. The plain loop makes two calls: for the user turns, and, padded in front, for the answers. Counted
  are the tokens that are kept: what a call computes for texts that have ended is no text.

    python benchmarks/teacher_text.py [texts=32] [tokens=256] [repeats=5] [threads=0] [model=smollm2_135m] [gguf=]

prints one JSON line: median tokens per second of each side, and as `speed_ratio` that of `razor` over that of
`generate`. `threads=0` leaves the number to torch. `model=random` has random weights in the shape of SmolLM2-135M.
Run it under the heap settings of train.py; all sides get the same.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from razor.data.llama_cpp import LlamaCpp
from razor.data.sampling import Fixed, Free, Sampling, Text, write
from razor.data.turns import Turns, turns_of

OPTIONS = {"texts": 32, "tokens": 256, "repeats": 5, "threads": 0, "model": "smollm2_135m", "gguf": ""}
SAMPLING = Sampling(1.0, 0.95, 256)
WARM_UP = 8
"""Tokens a text in the round that is not measured."""


def loaded(name: str) -> tuple[Any, Any]:
    """The model in bf16 and its tokenizer."""
    from razor import cli

    overrides = ["model=smollm2_135m", "model.weights=random"] if name == "random" else [f"model={name}"]
    source = cli.model_source(cli.composed("size", overrides))
    return source.load(torch.bfloat16), source.tokenizer()


def generated(model: Any, ids: Tensor, mask: Tensor, **options: Any) -> Tensor:
    """What a plain loop gets of one call, prompts cut off."""
    draw = {"do_sample": True, "temperature": 1.0, "top_k": 256, "top_p": 0.95}
    return model.generate(ids, attention_mask=mask, pad_token_id=0, **draw, **options)[:, ids.shape[1] :]


def plain(model: Any, start: int, texts: int, tokens: int) -> int:
    """Texts of full length by one call; the number of tokens."""
    ids = torch.full((texts, 1), start, device=model.device)
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "eos_token_id": None}
    return generated(model, ids, torch.ones_like(ids), **options).numel()


def plain_chat(model: Any, turns: Turns, texts: int, tokens: int) -> int:
    """Chats by two calls, of at most `tokens` tokens a turn; the number of tokens that are kept."""
    user, between, answer = turns.script
    assert isinstance(user, Free) and isinstance(between, Fixed) and isinstance(answer, Free)
    asked = torch.tensor(turns.starts * texts, device=model.device)
    limits = [min(turn.limit, tokens) for turn in (user, answer)]
    written = generated(
        model, asked, torch.ones_like(asked), max_new_tokens=limits[0], eos_token_id=sorted(user.stops)
    )
    said = [until(row, user.stops) for row in written.tolist()]
    prompts = [[*turns.starts[0], *row, *between.tokens] for row in said]
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts], device=model.device)
    answers = generated(model, ids, mask, max_new_tokens=limits[1], eos_token_id=sorted(answer.stops))
    return sum(map(len, said)) + sum(len(until(row, answer.stops)) for row in answers.tolist())


def until(tokens: list[int], stops: frozenset[int]) -> list[int]:
    """The tokens before the first stop."""
    return next((tokens[:place] for place, token in enumerate(tokens) if token in stops), tokens)


def razor(model: Any, vocabulary: int, rows: list[Text]) -> int:
    """Ours; the number of tokens."""
    write(model, rows, SAMPLING, torch.Generator(model.device).manual_seed(0), vocabulary)
    return sum(last - first for row in rows for first, last in row.spans)


def through_llama_cpp(server: LlamaCpp, rows: list[Text]) -> int:
    """A GGUF; the number of tokens."""
    server.write(rows, SAMPLING, 0)
    return sum(last - first for row in rows for first, last in row.spans)


def full(start: int, texts: int, tokens: int) -> list[Text]:
    """Texts that stop at nothing."""
    return [Text([start], [Free(tokens, frozenset())]) for _ in range(texts)]


def sides_of(
    model: Any, tokenizer: Any, texts: int, tokens: int, gguf: str
) -> dict[str, Callable[[int], int]]:
    """By name, what writes texts of so many tokens and returns how many these were."""
    start = next(i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id, 0) if i is not None)
    size, turns = len(tokenizer), turns_of(tokenizer, 40, 176)
    sides: dict[str, Callable[[int], int]] = {
        "generate": lambda count: plain(model, start, texts, count),
        "razor": lambda count: razor(model, size, full(start, texts, count)),
        "razor_2x": lambda count: razor(model, size, full(start, 2 * texts, count)),
    }
    if len(turns.script) == 3:
        draws = torch.Generator().manual_seed(0)
        sides["generate_chat"] = lambda count: plain_chat(model, turns, texts, count)
        sides["razor_chat"] = lambda _: razor(model, size, turns.texts(texts, draws))
    if gguf:
        server = LlamaCpp(Path(gguf), texts, tokens + 8, tokenizer)
        sides["llama_cpp"] = lambda count: through_llama_cpp(server, full(start, texts, count))
    return sides


def main(words: list[str]) -> dict[str, Any]:
    given = dict(word.split("=", 1) for word in words)
    options: dict[str, Any] = {key: type(value)(given.pop(key, value)) for key, value in OPTIONS.items()}
    if given:
        sys.exit(f"Unknown option {min(given)}. Choices: {', '.join(OPTIONS)}.")
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    sides = sides_of(*loaded(options["model"]), options["texts"], options["tokens"], options["gguf"])
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for job in sides.values():
        job(WARM_UP)
    for _ in range(options["repeats"]):
        for name, job in sides.items():
            started = time.perf_counter()
            count = job(options["tokens"])
            speeds[name].append(count / (time.perf_counter() - started))
    median = {name: statistics.median(values) for name, values in speeds.items()}
    ratios = {"speed_ratio": ("razor", "generate"), "speed_ratio_2x": ("razor_2x", "generate")}
    if "razor_chat" in sides:
        ratios["speed_ratio_chat"] = ("razor_chat", "generate_chat")
    return {
        "benchmark": "teacher_text",
        **options,
        "tokens_per_second": {name: round(value, 1) for name, value in median.items()},
        **{key: round(median[ours] / median[theirs], 3) for key, (ours, theirs) in ratios.items()},
        "range": {name: [round(min(found), 1), round(max(found), 1)] for name, found in speeds.items()},
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
