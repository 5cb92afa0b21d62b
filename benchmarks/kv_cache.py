"""Memory and time per generated token: a cache that stores codes against Transformers' 16-bit one.

A model of SmolLM2's shape with random weights in bf16 reads a context, then generates a few tokens on top of it;
the caches take turns in one process, and after each turn its tokens are cropped away again.

    python benchmarks/kv_cache.py layers=4 threads=1

`dynamic` is the model as it is on a `DynamicCache`; `stored` has its keys and values quantized in a `QuantCache`;
`rounded` is the same model on a `DynamicCache`, where attention rounds the whole past at every token.
Prints one line of JSON: bytes of keys and values, median milliseconds a token, and their ratios to `dynamic`.
"""

from __future__ import annotations

import copy
import json
import statistics
import sys
import time
from typing import Any

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from razor.models import quant_cache, quantize_kv
from razor.quant import Integer

DEFAULTS = {"layers": 4, "threads": 1, "repeats": 7, "tokens": 8, "bits": "8,4,2", "contexts": "512,2048"}


def smollm2(layers: int) -> Any:
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def nbytes(cache: Any) -> int:
    """Bytes of memory that a cache takes, room for further tokens included."""
    if isinstance(cache, DynamicCache):
        return sum(states.nbytes for layer in cache.layers for states in (layer.keys, layer.values))
    return int(cache.reserved)


def measure(runs: dict[str, tuple[Any, Any]], context: int, tokens: int, repeats: int) -> dict[str, Any]:
    """Bytes and median milliseconds a token of each (model, cache)."""
    ids = torch.randint(0, 49152, (1, context + tokens), generator=torch.Generator().manual_seed(1))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for model, cache in runs.values():
        model(ids[:, :context], past_key_values=cache, use_cache=True, logits_to_keep=1)
    for _ in range(repeats + 1):  # the first round warms up
        for name, (model, cache) in runs.items():
            start = time.perf_counter()
            for t in range(context, context + tokens):
                model(ids[:, t : t + 1], past_key_values=cache, use_cache=True, logits_to_keep=1)
            times[name].append((time.perf_counter() - start) / tokens)
            cache.crop(-tokens)
    return {
        "bytes": {name: nbytes(cache) for name, (_, cache) in runs.items()},
        "ms_per_token": {name: 1e3 * statistics.median(t[1:]) for name, t in times.items()},
    }


@torch.inference_mode()
def main(words: list[str]) -> dict[str, Any]:
    given = DEFAULTS | dict(word.split("=", 1) for word in words)
    layers, threads, repeats, tokens = (int(given[k]) for k in ("layers", "threads", "repeats", "tokens"))
    torch.set_num_threads(threads)
    plain = smollm2(layers)
    results = []
    for context in map(int, str(given["contexts"]).split(",")):
        for bits in map(int, str(given["bits"]).split(",")):
            model = copy.deepcopy(plain)
            quantize_kv(model, Integer(bits, 64))
            runs = {
                "dynamic": (plain, DynamicCache(config=plain.config)),
                "stored": (model, quant_cache(model)),
                "rounded": (model, DynamicCache(config=model.config)),
            }
            found = measure(runs, context, tokens, repeats)
            ratios = {f"{key}_ratio": found[key]["stored"] / found[key]["dynamic"] for key in found}
            results.append({"context": context, "bits": bits} | found | ratios)
    return {"benchmark": "kv_cache"} | {key: given[key] for key in DEFAULTS} | {"results": results}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
