"""compressed-tensors: the folder that vLLM reads natively and Transformers with one package more.

It is a plain folder of Transformers in which some linear layers have packed codes and scales in place of a weight
(see `razor.export.compressed_tensors_layout`), and whose config.json says in `config_groups` which layers have how
many bits and which group. So one folder may have layers of four and of eight bits, and layers in 16. Ternary, two
and three bits take four: vLLM has kernels for four and eight. Asymmetric int4 takes eight.

Scales are read in the dtype of the model. Razor's are fp16, so the folder says float16 and its embedding, head and
norms are; if all scales of a plan are bf16, it says bfloat16.

Activations can be named in this format, dynamic per token or per group, but with another rounding than Razor's
(codes -128..127 and a scale of the largest magnitude / 127.5, not rounded to fp16; Razor: -127..127, / 127, fp16);
and vLLM's GPU kernels for such layers are not those for weights alone. So they are left out unless asked for.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from torch import nn

from razor.errors import RazorError
from razor.export.compressed import Compressed
from razor.export.compressed_tensors_layout import NAME, Scheme, folder_dtype, packed, schemes, unpacked
from razor.export.exporter import Exporter, Proof
from razor.export.hf_folder import (
    Skeleton,
    check_state,
    integer_costs,
    not_in_it,
    sixteen_bit,
    write_folder,
)
from razor.export.integers import check_spans, integers, matrices
from razor.export.loaded import compare_loaded
from razor.export.shards import read_shards
from razor.export.words import check_words

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from razor.quant import Plan

FORMAT = "pack-quantized"
Activations = Literal["none", "token", "group"]


class CompressedTensors(Exporter):
    """Integers of four or eight bits in the format of compressed-tensors.

    Args:
        activations: "none" leaves inputs in 16 bits; "token" or "group" names dynamic int8 for those layers whose
            inputs the plan quantizes to 8 bits, with one scale a token or for each group of the weights.

    Raises:
        RazorError: activations outside its choices.
    """

    name: ClassVar[str] = NAME
    tags: ClassVar[tuple[str, ...]] = ("compressed-tensors", "safetensors", "vllm")

    def __init__(self, activations: Activations = "none") -> None:
        if activations not in get_args(Activations):
            raise RazorError(
                f"export.compressed_tensors.activations={activations}. Choices: {', '.join(get_args(Activations))}."
            )
        self.activations = activations

    def check(
        self, plan: Plan, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        """See `Exporter`."""
        if find_spec("compressed_tensors") is None:
            raise RazorError(
                "export=compressed_tensors needs the package of that name: pip install compressed-tensors"
            )
        check_spans(self.name, plan, Skeleton.of(config), bare=True)

    def write(self, compressed: Compressed, folder: Path) -> None:
        """See `Exporter`."""
        skeleton, dtype = Skeleton.of(compressed.config), folder_dtype(compressed.plan)
        layers = schemes(compressed.plan, skeleton)
        state = sixteen_bit(compressed, skeleton, dtype, set(compressed.plan.modules) - set(layers))
        for weight in matrices(compressed, skeleton):
            if weight.name in layers:
                bits, group = layers[weight.name]
                own = integers(weight.format, weight.codes)
                own = own.grouped(weight.shape[1] if group == -1 else group)
                parts = packed(own, bits, dtype, weight.name)
                state |= {f"{weight.name}.{part}": tensor for part, tensor in parts.items()}
        write_folder(compressed, folder, state, dtype, self.quantization(compressed.plan, skeleton))

    def quantization(self, plan: Plan, skeleton: Skeleton) -> dict[str, Any]:
        """`quantization_config` of config.json: one group of layers for each scheme, by the package's own words."""
        import compressed_tensors
        from compressed_tensors.quantization import (
            QuantizationArgs,
            QuantizationConfig,
            QuantizationScheme,
            QuantizationStatus,
        )

        layers = schemes(plan, skeleton)
        groups: dict[tuple[Scheme, bool], list[str]] = {}
        for name, scheme in layers.items():
            groups.setdefault((scheme, self.names_activations(plan, name)), []).append(name)
        linear = {name for name, module in skeleton.model.named_modules() if isinstance(module, nn.Linear)}
        told = {}
        for number, (((bits, group), inputs), names) in enumerate(groups.items()):
            weights = QuantizationArgs(num_bits=bits, group_size=group)
            dynamic = None
            if inputs:
                size = {"group_size": group} if self.activations == "group" and group != -1 else {}
                dynamic = QuantizationArgs(
                    num_bits=8, strategy="group" if size else "token", dynamic=True, **size
                )
            told[f"group_{number}"] = QuantizationScheme(
                targets=["Linear"] if len(groups) == 1 else names,
                weights=weights,
                input_activations=dynamic,
                format=FORMAT,
            )
        config = QuantizationConfig(
            config_groups=told,
            format=FORMAT,
            quantization_status=QuantizationStatus.COMPRESSED,
            ignore=sorted(linear - set(layers)),
        )
        return config.model_dump(mode="json") | {"version": compressed_tensors.__version__}

    def names_activations(self, plan: Plan, name: str) -> bool:
        """Whether the folder says that a layer's inputs are int8."""
        inputs = plan.modules[name].activations
        return self.activations != "none" and inputs is not None and inputs.label == "8"

    def verify(self, compressed: Compressed, folder: Path) -> Proof:
        """Unpack with the package's own functions, bit for bit; load in Transformers and compare logits."""
        check_words(compressed, folder)
        skeleton, dtype = Skeleton.of(compressed.config), folder_dtype(compressed.plan)
        layers, found = schemes(compressed.plan, skeleton), read_shards(folder)
        rest = set(compressed.plan.modules) - set(layers)
        check_state(found, sixteen_bit(compressed, skeleton, dtype, rest), folder)
        for weight in matrices(compressed, skeleton):
            if weight.name in layers:
                bits, _ = layers[weight.name]
                if not torch.equal(unpacked(found, weight.name, bits).decoded(), weight.decoded()):
                    raise RazorError(
                        f"'{folder}' was not written as it was meant: see '{weight.name}.weight_packed'."
                    )
        line = (
            f"The codes and scales of all {len(layers)} matrices, unpacked by the compressed-tensors package, give "
            "the student's weights bit for bit."
        )
        activations = any(self.names_activations(compressed.plan, name) for name in layers)
        facts, told = compare_loaded(compressed, folder, dtype, rest, activations)
        return Proof({"matrices": len(layers), "weights": "bit for bit"} | facts, (line, told))

    def costs(self, compressed: Compressed, folder: Path) -> list[str]:
        """See `Exporter`."""
        lines = integer_costs(compressed, folder, folder_dtype(compressed.plan))
        if self.activations == "none":
            return [*lines, *not_in_it(compressed)]
        return [
            *lines,
            f"activations are named as dynamic int8 (one scale a {self.activations}), with another rounding than "
            "Razor's: codes -128..127, scales of the largest magnitude / 127.5; and not every runtime has a kernel",
            *not_in_it(compressed, activations=False),
        ]

    def usage(self, compressed: Compressed) -> str:
        """See `Exporter`."""
        return f"""```bash
vllm serve . --dtype {"bfloat16" if folder_dtype(compressed.plan) is torch.bfloat16 else "float16"}
```

or, with `pip install compressed-tensors`:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
```"""
