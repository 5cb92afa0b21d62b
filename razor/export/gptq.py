"""GPTQ checkpoints: the four-bit layout that most GPU runtimes have a kernel for.

The name is that of a rounding algorithm (Frantar et al., arXiv 2210.17323); what became a standard is how its
first programs wrote weights down (see `razor.export.gptq_layout`). Nothing is rounded here: the codes are the
student's. Ternary and two- or three-bit codes fit in the same four bits and waste the rest. Zero points of their
own (asymmetric int4) are held as long as none of them is 0, which version 1 of the layout cannot say.

A folder has one group size. Larger groups, whole rows too, repeat their scale at 128, 64 or 32 inputs. Embedding
and output head stay 16-bit; activations and KV cache are not part of the format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from razor.errors import RazorError
from razor.export.compressed import Compressed
from razor.export.exporter import Exporter, Proof
from razor.export.gptq_layout import SCALES, packed, unpacked
from razor.export.hf_folder import (
    Skeleton,
    check_state,
    integer_costs,
    not_in_it,
    sixteen_bit,
    write_folder,
)
from razor.export.integers import (
    GROUPS,
    check_spans,
    integers,
    matrices,
    shared_inputs,
)
from razor.export.loaded import compare_loaded
from razor.export.shards import read_shards
from razor.export.words import check_words

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from razor.quant import Plan

DTYPE = SCALES
"""Of scales, embedding and head, and what config.json tells runtimes to compute in: bf16 would round the scales."""
RUNTIME = ("gptqmodel", "optimum")
"""Packages with which Transformers loads such a folder."""


class GPTQ(Exporter):
    """Four-bit GPTQ, version 1, without activation order."""

    name: ClassVar[str] = "gptq"
    tags: ClassVar[tuple[str, ...]] = ("gptq", "4-bit", "safetensors")

    def check(
        self, plan: Plan, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        """See `Exporter`; the group has to be made of 32 inputs, outputs come in eights."""
        skeleton = Skeleton.of(config)
        spans = check_spans(self.name, plan, skeleton, bare=False)
        if wide := [name for name, span in spans.items() if span.bits > 4]:
            raise RazorError(
                f"export=gptq has four bits for a code; {len(wide)} layers have more, first '{wide[0]}' "
                f"({plan.modules[wide[0]].weights.label} bits). export=[packed,compressed_tensors,dense] hold them."
            )
        group_size(plan, skeleton)
        odd = [name for name in spans if skeleton.linear[name].out_features % 8]
        if odd:
            raise RazorError(
                f"export=gptq packs outputs in eights; '{odd[0]}' has {skeleton.linear[odd[0]].out_features} "
                f"({len(odd)} layers). export=[packed,dense] hold them."
            )

    def write(self, compressed: Compressed, folder: Path) -> None:
        """See `Exporter`."""
        skeleton = Skeleton.of(compressed.config)
        group = group_size(compressed.plan, skeleton)
        state = sixteen_bit(compressed, skeleton, DTYPE, skeleton.ends)
        symmetric = True
        for weight in matrices(compressed, skeleton):
            own = integers(weight.format, weight.codes).grouped(group)
            symmetric = symmetric and own.zeros is None
            state |= {f"{weight.name}.{part}": t for part, t in packed(own, group, weight.name).items()}
        write_folder(compressed, folder, state, DTYPE, quantization_config(group, symmetric))

    def verify(self, compressed: Compressed, folder: Path) -> Proof:
        """Unpack what was written, bit for bit; load it in Transformers where GPTQModel is installed."""
        check_words(compressed, folder)
        skeleton, found = Skeleton.of(compressed.config), read_shards(folder)
        check_state(found, sixteen_bit(compressed, skeleton, DTYPE, skeleton.ends), folder)
        count = 0
        for weight in matrices(compressed, skeleton):
            if not torch.equal(unpacked(found, weight.name), weight.decoded()):
                raise RazorError(f"'{folder}' was not written as it was meant: see '{weight.name}.qweight'.")
            count += 1
        line = f"The codes, zero points and scales of all {count} matrices give the student's weights bit for bit."
        if missing := [package for package in RUNTIME if find_spec(package) is None]:
            loaded: Mapping[str, Any] = {"not loaded": f"without {', '.join(missing)}"}
            told = (
                f"It was not loaded in a runtime when it was written: {' and '.join(missing)} not installed."
            )
        else:
            from transformers import GPTQConfig

            # the plain kernel: the faster ones are compiled for minutes when they are first used
            kernel = GPTQConfig(bits=4, backend="gptq_torch")
            loaded, told = compare_loaded(compressed, folder, DTYPE, None, quantization_config=kernel)
        return Proof({"matrices": count, "weights": "bit for bit"} | dict(loaded), (line, told))

    def costs(self, compressed: Compressed, folder: Path) -> list[str]:
        """See `Exporter`."""
        told = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
        lines = integer_costs(compressed, folder, DTYPE)
        if not told["sym"]:
            lines.append("its zero points are read by GPTQModel; vLLM (0.32) takes symmetric GPTQ alone")
        return [*lines, *not_in_it(compressed)]

    def usage(self, compressed: Compressed) -> str:
        """See `Exporter`."""
        return """```bash
vllm serve . --dtype float16
```

or, with `pip install gptqmodel optimum`:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
```"""


def group_size(plan: Plan, skeleton: Skeleton) -> int:
    """The largest group of GROUPS into which the groups of all decoder linears can be cut.

    Raises:
        RazorError: there is none.
    """
    widths = {
        name: shared_inputs(plan.modules[name].weights, layer.in_features)
        for name, layer in skeleton.linear.items()
    }
    fit = [group for group in GROUPS if all(width % group == 0 for width in widths.values())]
    if not fit:
        name, width = next((name, w) for name, w in widths.items() if w % GROUPS[-1])
        raise RazorError(
            f"export=gptq has groups of {', '.join(map(str, GROUPS))} inputs; '{name}' shares a scale among "
            f"{width}. Set model.group to a multiple of 32, or export=[packed,compressed_tensors,dense]."
        )
    return fit[0]


def quantization_config(group: int, symmetric: bool) -> dict[str, Any]:
    """`quantization_config` of config.json, as Transformers, GPTQModel and vLLM read it."""
    return {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": group,
        "sym": symmetric,
        "desc_act": False,
        "true_sequential": True,
        "lm_head": False,
        "checkpoint_format": "gptq",
        "format": "gptq",
        "pack_dtype": "int32",
        "meta": {"quantizer": ["razor:1"]},
    }
