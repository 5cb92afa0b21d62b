"""GGUF, for llama.cpp and what builds on it: our codes in its blocks, proven in llama.cpp itself.

exporter.py       what the option writes, checks, proves and says
holding.py        which block type holds a format exactly, and our codes as it wants them
blocks.py         the block types, bit by bit; super_blocks.py: those of 256 with zero points
architectures.py  names of tensors, facts, order of rows; llama, qwen3, gemma3
vocabulary.py     the tokenizer
writing.py        the file; reading.py: every tensor compared with ours
reference.py      the model in fp32; proof.py: the same tokens and predictions in llama.cpp
"""

from razor.export.gguf.exporter import GGUF

__all__ = ["GGUF"]
