"""Razor's own format, for Transformers: the packed folder, with a card and checksums, as one shares it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from razor.errors import RazorError
from razor.export.compressed import Compressed
from razor.export.exporter import Exporter, Proof
from razor.export.packed import load_packed, packed_bytes, reshard
from razor.export.packed_files import files_of
from razor.export.shards import SHARD
from razor.export.words import check_words
from razor.models.sample import IMAGES, TOKENS, sample_inputs
from razor.models.task import Task
from razor.quant import CodedWeight

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from razor.quant import Plan


class Packed(Exporter):
    """True bits on disk and the student's logits to the last bit.

    Args:
        shard: bytes of a weights file, at most.

    Raises:
        RazorError: not a positive number.
    """

    name: ClassVar[str] = "packed"
    tasks: ClassVar[tuple[Task, ...]] = ("text", "images", "media")

    def __init__(self, shard: int = SHARD) -> None:
        if isinstance(shard, bool) or not isinstance(shard, int) or shard < 1:
            raise RazorError(f"export.packed.shard='{shard}' must be a positive number of bytes.")
        self.shard = shard

    def check(
        self, plan: Plan, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        """It holds every plan."""

    def write(self, compressed: Compressed, folder: Path) -> None:  # noqa: D102 - see Exporter
        for name in files_of(compressed.folder):  # and nothing else that may lie there
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(compressed.folder / name, folder / name)
        if packed_bytes(folder) > self.shard:
            reshard(folder, self.shard)

    def verify(self, compressed: Compressed, folder: Path) -> Proof:
        """Every stored tensor equal, and the logits of a pass through Transformers' own loader."""
        check_words(compressed, folder)
        model, _ = load_packed(folder)
        expected, found = compressed.model.state_dict(), model.state_dict()
        for name, tensor in expected.items():
            if name not in found or not torch.equal(tensor, found[name]):
                raise RazorError(f"'{folder}': tensor '{name}' is not the one that was exported.")
        given = sample_inputs(compressed.model, compressed.config)
        with torch.no_grad():
            logits = [m(**given).logits for m in (compressed.model, model)]
        if not torch.equal(*logits):
            raise RazorError(f"'{folder}' gives other logits than the model that was exported.")
        coded = sum(isinstance(part, CodedWeight) for part in model.modules())
        many, unit = (TOKENS, "tokens") if compressed.tokenizer is not None else (IMAGES, "images")
        facts = {"tensors": len(expected), "weights": coded, unit: many, "logits": "equal"}
        line = f"all {len(expected)} tensors and the logits of {many} {unit} are the student's, bit for bit"
        return Proof(facts, (line,))

    def costs(self, compressed: Compressed, folder: Path) -> list[str]:  # noqa: D102
        size, stored = compressed.size.total, packed_bytes(folder)
        return [
            f"{stored / 1e6:.1f} MB of weights, {8 * stored / size.parameters:.3f} bits per weight on disk, "
            f"ratio {2 * size.parameters / stored:.2f} to 16 bits",
            "nothing is lost: weights, activations and keys and values are those of training",
        ]

    def usage(self, compressed: Compressed) -> str:  # noqa: D102
        return USAGE if compressed.tokenizer is not None else USAGE_IMAGES

    def bytes(self, compressed: Compressed) -> int:  # noqa: D102
        return 2 * packed_bytes(compressed.folder)


USAGE_IMAGES = """```python
import razor  # pip install razor-qad; teaches Transformers the format
from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained(".")
logits = model(pixel_values=pixels).logits  # [images, channels, height, width], normalized as in training
```"""

USAGE = """```python
import razor  # pip install razor-qad; teaches Transformers the format
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

model = AutoModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
print(pipeline("text-generation", model=model, tokenizer=tokenizer)("Hello", max_new_tokens=20))
```

`from_pretrained(".", quantization_config=razor.RazorConfig(hold="int4"))` holds the weights in four bits in memory.
In a terminal: `razor chat run=.`"""
