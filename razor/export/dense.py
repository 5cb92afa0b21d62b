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
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from razor.errors import RazorError
from razor.export.compressed import Compressed
from razor.export.exporter import Exporter, Proof
from razor.export.hf_folder import Skeleton, dtype_name, not_in_it, sixteen_bit
from razor.export.loaded import TIGHT, bare_model, gap, logits, quiet, rounded_weights
from razor.export.program import PROGRAM, read_program, write_program
from razor.export.words import check_words, write_words
from razor.models.sample import sample_inputs
from razor.models.task import Task, auto_class, task_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from razor.quant import Plan


IMAGES = """```python
from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained(".")
logits = model(pixel_values=pixels).logits  # [images, channels, height, width], normalized as in training
```"""


class Dense(Exporter):
    """Quantized values in a plain folder of Transformers.

    Args:
        program: whether the folder also gets the model as a program of `torch.export` (image classifiers alone).

    Raises:
        RazorError: not true or false.
    """

    name: ClassVar[str] = "dense"
    tags: ClassVar[tuple[str, ...]] = ("safetensors",)
    tasks: ClassVar[tuple[Task, ...]] = ("text", "images", "media")

    def __init__(self, program: bool = False) -> None:
        if not isinstance(program, bool):
            raise RazorError(f"export.dense.program={program} must be true or false.")
        self.program = program

    def check(
        self, plan: Plan, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        """It holds every plan; a program is made of image classifiers alone.

        Raises:
            RazorError: a program of a model that reads text.
        """
        if self.program and task_of(config) != "images":
            raise RazorError("export.dense.program=true is for models that read images.")

    def bytes(self, compressed: Compressed) -> int:
        """All parameters in the compute dtype, once more in a program, and some more for the tokenizer."""
        return (
            1 + self.program
        ) * compressed.compute_dtype.itemsize * compressed.size.total.parameters + 10**7

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
        if compressed.tokenizer is not None:
            model.generation_config = compressed.model.generation_config
        try:
            with quiet():
                model.save_pretrained(folder)
        except SafetensorError as error:
            raise RazorError(f"'{folder.name}' could not be written ({error}): is the disk full?") from error
        write_words(compressed, folder)
        if self.program:
            write_program(_plain(compressed, folder), compressed.config, folder / PROGRAM)
        for file in folder.glob("*.safetensors"):
            shutil.copymode(folder / "config.json", file)  # safetensors lets nobody else read it

    def verify(self, compressed: Compressed, folder: Path) -> Proof:
        """Load it as anybody would, and compare weights and logits bit for bit; see `Exporter`."""
        check_words(compressed, folder)
        model = _plain(compressed, folder)
        dtype = compressed.compute_dtype
        found = model.state_dict(keep_vars=True)
        wanted = sixteen_bit(compressed, Skeleton.of(compressed.config), dtype)
        for name, tensor in wanted.items():
            if name not in found or found[name].dtype != tensor.dtype or not torch.equal(found[name], tensor):
                raise RazorError(f"'{folder}' was not read back as it was meant: see tensor '{name}'.")
        own = logits(model, compressed)
        unit = "tokens" if compressed.tokenizer is not None else "images"
        told, line = self._logits(compressed, folder, own)
        facts: dict[str, Any] = {
            "tensors": len(wanted),
            "weights": "bit for bit",
            "logits": told,
            unit: len(own),
        }
        lines = [
            f"All {len(wanted)} tensors, loaded by Transformers alone, equal the student's decoded weights bit "
            "for bit.",
            f"Its logits on {len(own)} {unit} {line}",
        ]
        if self.program:
            facts["program"] = _compare_program(compressed, folder, own)
            lines.append(
                f"{PROGRAM}, read back by torch.export, is within {facts['program']:.1g} of the largest."
            )
        return Proof(facts, tuple(lines))

    def _logits(self, compressed: Compressed, folder: Path, own: Tensor) -> tuple[Any, str]:
        """How its logits compare with those of the packed model without quantized activations and KV cache.

        Bit for bit, unless there is batch norm: the student has its statistics in fp32, a plain 16-bit model does
        not. Then both are held against each other in fp32, with the same rounded numbers.
        """
        dtype, bare = compressed.compute_dtype, "the packed model without quantized activations and KV cache"
        model = bare_model(compressed, dtype)
        reference = logits(model, compressed)
        if torch.equal(own, reference):
            return "bit for bit", f"equal those of {bare}, bit for bit."
        far = gap(own, reference)
        if any(isinstance(part, _BatchNorm) for part in model.modules()):
            rounded = bare_model(compressed, torch.float32)
            rounded_weights(rounded, None, dtype)
            for name, buffer in rounded.named_buffers():
                if name.rpartition(".")[2] in ("running_mean", "running_var"):
                    buffer.copy_(buffer.to(dtype))
            with quiet():
                kind = auto_class(compressed.config)
                plain = kind.from_pretrained(str(folder), dtype=torch.float32, local_files_only=True)
            tight = gap(logits(plain, compressed), logits(rounded, compressed))
            if tight <= TIGHT:
                return {"fp32": tight, dtype_name(dtype): far}, (
                    f"are, in fp32, within {tight:.1g} of the largest of {bare}; in {dtype_name(dtype)} within "
                    f"{far:.1g}, because its batch norm has statistics in 16 bits."
                )
        raise RazorError(f"'{folder}' gives other logits than {bare} (by up to {far:.2g} of the largest).")

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
        if compressed.tokenizer is None:
            return IMAGES
        return """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
```

Any runtime that reads Hugging Face folders does, among them `vllm serve .`"""


def _plain(compressed: Compressed, folder: Path) -> PreTrainedModel:
    """The folder as anybody loads it."""
    with quiet():
        return auto_class(compressed.config).from_pretrained(str(folder), local_files_only=True).eval()


def _compare_program(compressed: Compressed, folder: Path, own: Tensor) -> float:
    """How far a program's logits are from those of the folder, in units of the largest.

    Raises:
        RazorError: too far.
    """
    pixels = sample_inputs(_plain(compressed, folder), compressed.config)["pixel_values"]
    with torch.no_grad():
        far = gap(read_program(folder / PROGRAM)(pixels).float(), own)
    limit = TIGHT if compressed.compute_dtype is torch.float32 else 0.02
    if not far <= limit:
        raise RazorError(
            f"'{folder / PROGRAM}' gives other logits than the folder (by {far:.2g} of the largest)."
        )
    return far
