"""A plain 16-bit folder that holds the quantized values.

Every weight is decoded in fp32 and rounded once to the compute dtype, exactly as the student's forward pass reads
it. Such a folder is as large as the original model and knows nothing of Razor, and that is its use: anything that
reads Hugging Face folders can score it, serve it, or convert it further, and whatever a smaller format is said to
lose can be measured against it.
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from razor.errors import RazorError
from razor.export.compressed import Compressed
from razor.export.exporter import Exporter, Proof
from razor.export.hf_folder import Skeleton, dtype_name, not_in_it, sixteen_bit
from razor.export.loaded import bare_model, gap, logits, quiet
from razor.export.words import check_words, write_words

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from razor.quant import Plan


class Dense(Exporter):
    """Quantized values in a plain folder of Transformers."""

    name: ClassVar[str] = "dense"
    tags: ClassVar[tuple[str, ...]] = ("safetensors",)

    def check(
        self, plan: Plan, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        """Nothing: it holds every plan."""

    def bytes(self, compressed: Compressed) -> int:
        """All parameters in the compute dtype, and some more for the tokenizer."""
        return compressed.compute_dtype.itemsize * compressed.size.total.parameters + 10**7

    def write(self, compressed: Compressed, folder: Path) -> None:
        """What `save_pretrained` makes of the plain model; see `Exporter`."""
        from safetensors import SafetensorError

        skeleton = Skeleton.of(compressed.config)
        state = sixteen_bit(compressed, skeleton, compressed.compute_dtype)
        model = skeleton.model
        model.load_state_dict(state, strict=False, assign=True)
        model.tie_weights()
        model.config = copy.deepcopy(compressed.config)
        model.config.dtype = dtype_name(compressed.compute_dtype)
        model.generation_config = compressed.model.generation_config
        try:
            with quiet():
                model.save_pretrained(folder)
        except SafetensorError as error:
            raise RazorError(f"'{folder.name}' could not be written ({error}): is the disk full?") from error
        write_words(compressed, folder)
        for file in folder.glob("*.safetensors"):
            shutil.copymode(folder / "config.json", file)  # safetensors lets nobody else read it

    def verify(self, compressed: Compressed, folder: Path) -> Proof:
        """Load it as anybody would, and compare weights and logits bit for bit; see `Exporter`."""
        from transformers import AutoModelForCausalLM

        check_words(compressed, folder)
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(str(folder), local_files_only=True)
        dtype = compressed.compute_dtype
        found = model.state_dict(keep_vars=True)
        wanted = sixteen_bit(compressed, Skeleton.of(compressed.config), dtype)
        for name, tensor in wanted.items():
            if name not in found or found[name].dtype != tensor.dtype or not torch.equal(found[name], tensor):
                raise RazorError(f"'{folder}' was not read back as it was meant: see tensor '{name}'.")
        reference = logits(bare_model(compressed, dtype), compressed)
        own = logits(model, compressed)
        if not torch.equal(own, reference):
            raise RazorError(
                f"'{folder}' gives other logits than the packed model without quantized activations and KV cache "
                f"(by up to {gap(own, reference):.2g} of the largest)."
            )
        facts = {
            "tensors": len(wanted),
            "weights": "bit for bit",
            "logits": "bit for bit",
            "tokens": len(own),
        }
        return Proof(
            facts,
            (
                f"All {len(wanted)} tensors, loaded by Transformers alone, equal the student's decoded weights bit "
                "for bit.",
                f"Its logits on {len(own)} tokens equal those of the packed model without quantized activations "
                "and KV cache, bit for bit.",
            ),
        )

    def costs(self, compressed: Compressed, folder: Path) -> list[str]:
        """See `Exporter`."""
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        lines = [
            f"nothing is smaller here: {size / 1e6:.1f} MB of {dtype_name(compressed.compute_dtype)} weights, "
            "as large as the original",
        ]
        return lines + not_in_it(compressed)

    def usage(self, compressed: Compressed) -> str:
        """See `Exporter`."""
        return """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
```

Any runtime that reads Hugging Face folders does, among them `vllm serve .`"""
