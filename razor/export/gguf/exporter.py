"""The export option `gguf`."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from razor.errors import RazorError
from razor.export.exporter import Exporter, Proof
from razor.export.gguf.architectures import architecture
from razor.export.gguf.blocks import Q2_0, BlockType
from razor.export.gguf.holding import SMALLEST, as_written, block_types
from razor.export.gguf.proof import compare_fp32, compare_head, compare_logits, compare_tokens, open_for_proof
from razor.export.gguf.reading import compare
from razor.export.gguf.vocabulary import vocabulary
from razor.export.gguf.writing import Entry, entries, file_bits, write
from razor.models.llama_library import FOLDER, block_size, find_library
from razor.quant import RowMix
from razor.quant.sites import sites
from razor.spec import read

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from razor.export.compressed import Compressed
    from razor.quant import Plan

EIGHT_BITS = "-ctk q8_0 -ctv q8_0"
"""llama.cpp's options for an 8-bit KV cache."""

Trits = Literal["tq1_0", "tq2_0"]
Dtype = Literal["exact", "f32"]


class GGUF(Exporter):
    """One file `<model>-<quant>.gguf`: our codes as they are, in the smallest types that hold them.

    Args:
        ternary: type of ternary weights whose groups are 256 or more: "tq1_0" (1.69 bits), "tq2_0" (2.06 bits, less
            to compute).
        q2_0: use llama.cpp's newer Q2_0 (2.25 bits) for ternary weights in groups of 64; llama.cpp before version
            0.5 does not read it.
        dtype: "exact", or "f32": every weight decoded to fp32, to compare models.
        runtime: True: prove the file in llama.cpp, an error if that is missing; False: do not; None: if it is here.
        kl: nats per token by which predictions in llama.cpp may differ from the model in fp32 without further
            question; beyond that they may differ by three times what int8 activations alone change.

    Raises:
        RazorError: an option outside its choices.
    """

    name = "gguf"
    tags = ("gguf", "llama.cpp")

    def __init__(
        self,
        ternary: Trits = "tq1_0",
        q2_0: bool = False,
        dtype: Dtype = "exact",
        runtime: bool | None = None,
        kl: float = 1e-3,
    ) -> None:
        read(bool, q2_0, "export.gguf.q2_0")
        read(bool | None, runtime, "export.gguf.runtime")
        if not 0 <= read(float, kl, "export.gguf.kl") < math.inf:
            raise RazorError(f"export.gguf.kl={kl} must be a number of nats, 0 or more.")
        for key, value, choices in (("ternary", ternary, get_args(Trits)), ("dtype", dtype, get_args(Dtype))):
            if value not in choices:
                raise RazorError(f"export.gguf.{key}='{value}'. Choices: {', '.join(choices)}.")
        self.ternary, self.q2_0, self.dtype, self.runtime, self.kl = ternary, q2_0, dtype, runtime, kl

    @property
    def types(self) -> list[BlockType]:
        """Block types, the preferred first."""
        return block_types(self.ternary, self.q2_0)

    def check(  # noqa: D102 - see Exporter
        self, plan: Plan, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        if importlib.util.find_spec("gguf") is None:
            raise RazorError("export=[gguf] needs the package gguf: pip install 'gguf>=0.19'.")
        if self.runtime or self.q2_0:
            find_library()
        if self.q2_0 and block_size(Q2_0.number, Q2_0.decoder) != (Q2_0.size, Q2_0.bytes):
            raise RazorError(
                "export.gguf.q2_0=true cannot be proven here: this llama.cpp does not know Q2_0 (0.5 and later do)."
            )
        own = architecture(config)
        own.facts()  # rotary scaling and the like
        own.added_tensors()
        if tokenizer is not None:
            vocabulary(tokenizer, config.get_text_config().vocab_size)
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config)
        for name, _ in skeleton.named_parameters():
            own.tensor(name)
        found = sites(skeleton)
        refused: dict[str, str] = {}
        for name, place in plan.modules.items():
            try:
                as_written(place.weights, self.dtype == "f32", found[name].shape[1], self.types)
            except RazorError as error:
                refused[name] = str(error)
        if refused:
            raise _unheld(refused, plan)

    def write(self, compressed: Compressed, folder: Path) -> None:  # noqa: D102
        write(
            folder / self._file(compressed),
            compressed,
            architecture(compressed.config),
            self._entries(compressed),
        )

    def verify(self, compressed: Compressed, folder: Path) -> Proof:  # noqa: D102
        path, tensors = folder / self._file(compressed), self._entries(compressed)
        compare(path, tensors)
        lines = [
            f"{len(tensors)} tensors read back: codes and scales are the student's bit for bit, and decode to the "
            "same fp32 numbers"
        ]
        facts: dict[str, Any] = {"tensors": len(tensors), "codes_equal": True, "runtime": None}
        if not self._is_proven():
            lines.append(
                "NOT run in llama.cpp, which is not installed here, so its tokenizer is not verified either: "
                f"pip install 'razor-qad[llama-cpp]' (or set {FOLDER}), and export again"
                if self.runtime is None
                else "NOT run in llama.cpp, because of export.gguf.runtime=false"
            )
            return Proof(facts, tuple(lines))
        with open_for_proof(path) as llama:
            count = compare_tokens(llama, compressed.tokenizer)
            facts |= {"runtime": f"llama.cpp {llama.version}", "texts_tokenized_alike": count}
            lines.append(f"llama.cpp {llama.version} reads {count} texts as the same tokens as Transformers")
            if self.dtype == "f32":
                found = compare_fp32(llama, compressed)
                said = "the model in fp32"
            else:
                head = compare_head(compressed, architecture(compressed.config), folder)
                facts["fp32_head"] = head
                lines.append(
                    "its first layers as fp32 tensors give the same logits there within "
                    f"{head['largest_logit_difference']:.1g}"
                )
                found = compare_logits(llama, compressed, tensors, self.kl)
                said = "the model in fp32, whose activations nobody rounds,"
        own = found.get("kl_of_int8_activations")
        lines.append(
            f"on {found['tokens']:.0f} tokens the file's predictions there differ from {said} by "
            f"{found['kl_per_token']:.2g} nats per token"
            + ("" if own is None else f" (int8 activations alone change {own:.2g})")
            + f", the likeliest token is the same in {found['same_top1']:.0f} %"
        )
        facts |= found
        return Proof(facts, tuple(lines))

    def _is_proven(self) -> bool:
        if self.runtime is not None:
            return self.runtime
        return bool(os.environ.get(FOLDER)) or importlib.util.find_spec("xllamacpp") is not None

    def costs(self, compressed: Compressed, folder: Path) -> list[str]:  # noqa: D102
        tensors = self._entries(compressed)
        path = folder / self._file(compressed)
        said = [
            f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, {file_bits(tensors):.3f} bits per weight as GGUF "
            f"(Razor's own format: {compressed.size.total.bits_per_weight:.3f})",
            *_by_type(tensors),
        ]
        mixed = [e for e in tensors if e.weight is not None and isinstance(e.weight.format, RowMix)]
        if mixed and self.dtype == "exact":
            said.append(
                f"{len(mixed)} matrices are mixed by rows, and GGUF has one type a matrix, one that holds both. "
                "Mixing by whole matrices loses nothing: quant=matrix_2p79 or matrix_1p88"
            )
        wide = [e for e in tensors if e.weight is not None and e.shape[1] % SMALLEST and e.type == "float32"]
        if wide and self.dtype == "exact":
            said.append(
                f"{len(wide)} matrices have rows that are no multiple of {SMALLEST}, so GGUF holds them in 32 "
                f"bits, first '{wide[0].name}'"
            )
        if compressed.plan.kv_cache is not None:
            said.append(
                f"The KV cache is no part of the file: run llama.cpp with {EIGHT_BITS} for 8-bit keys and values, "
                "in its own blocks of 32"
                if _takes_q8(compressed)
                else f"llama.cpp has no 8-bit KV cache for heads whose width is no multiple of {SMALLEST}"
            )
        if self.dtype == "exact":
            said.append(
                "llama.cpp rounds activations to 8 bits in its own blocks: 32 numbers, 256 for TQ and K types"
            )
        return said

    def usage(self, compressed: Compressed) -> str:  # noqa: D102
        file = self._file(compressed)
        kv = f" -fa on {EIGHT_BITS}" if _takes_q8(compressed) else ""
        return (
            f"```bash\nllama-cli -m {file}{kv} -p 'The capital of France is'\n"
            f"llama-server -m {file}{kv}            # then OpenAI's protocol on http://localhost:8080\n```\n\n"
            "llama.cpp from https://github.com/ggml-org/llama.cpp; Ollama, LM Studio and llama-cpp-python read the "
            "same file where their llama.cpp knows its types."
        )

    def bytes(self, compressed: Compressed) -> int:  # noqa: D102
        total = compressed.size.total
        return 4 * total.parameters if self.dtype == "f32" else 3 * total.bytes_disk + (64 << 20)

    def _file(self, compressed: Compressed) -> str:
        suffix = "" if self.dtype == "exact" else "-f32"
        return f"{compressed.name.replace('/', '-')}{suffix}.gguf"

    def _entries(self, compressed: Compressed) -> list[Entry]:
        return entries(compressed, architecture(compressed.config), self.types, self.dtype == "f32")


def _takes_q8(compressed: Compressed) -> bool:
    """Whether the model was trained with quantized keys and values and llama.cpp can keep them in 8 bits."""
    return compressed.plan.kv_cache is not None and architecture(compressed.config).head_dim % SMALLEST == 0


def _by_type(tensors: Sequence[Entry]) -> list[str]:
    """For each kind of weight, our bits and the file's."""
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in tensors:
        if entry.weight is not None:
            label = f"{type(entry.weight.format).__name__} {entry.weight.format.label} bits"
            groups.setdefault((label, entry.type_name), []).append(entry)
    lines = []
    for (label, kind), own in groups.items():
        count = sum(e.shape[0] * e.shape[1] for e in own)
        ours = sum(e.weight.format.bits(e.shape) for e in own if e.weight is not None) / count
        stored = 8 * sum(e.nbytes for e in own) / count
        tensors_ = f"{len(own)} tensors" if len(own) > 1 else f"'{own[0].name}'"
        lines.append(
            f"{tensors_} in {label}: {ours:.3f} bits per weight, scales included, become {stored:.3f} ({kind})"
        )
    return lines


def _unheld(refused: dict[str, str], plan: Plan) -> RazorError:
    first = next(iter(refused))
    names = ", ".join(f"'{name}'" for name in list(refused)[:3])
    kinds = sorted({type(plan.modules[name].weights).__name__ for name in refused})
    return RazorError(
        f"GGUF cannot hold {len(refused)} weights exactly, first {names} ({', '.join(kinds)}): {refused[first]}. "
        "Symmetric formats in groups of 32 or more do (quant=w4, w3, w1p58, w2, mixed_2p79, matrix_2p79), "
        "asymmetric ones in groups of 256 (model.group=256); export.gguf.dtype=f32 takes any."
    )
