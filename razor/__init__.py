"""Razor: low-bit compression of language models by quantization-aware distillation.

A frozen 16-bit teacher, a student whose weights, activations and KV cache are quantized while it trains,
and losses between the two. One folder for each step: `quant` (formats), `distill` (losses), `models`,
`data`, `evals`, `export`, `train`, `serve`.
"""

__version__ = "0.1.0"
