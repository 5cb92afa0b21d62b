"""Is an exported folder, loaded by a runtime, still the same model?

The measure is the packed model *bare*: the same codes, with KV cache and activations left in 16 bits, because
folders of Transformers say nothing about them. A dense folder must give its logits bit for bit. For four- and
eight-bit folders there are two questions with two answers. Computing in fp32, a runtime that reads codes and
scales rightly gives the logits of the packed model up to the order of its sums. In the 16-bit type that the folder
names it rounds elsewhere than the student did, and differs by what 16 bits differ; how much is told, not judged, as
long as nothing overflows.
"""

from __future__ import annotations

import io
from collections.abc import Container, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from razor.errors import RazorError
from razor.export.packed_files import dtype_name
from razor.models.sample import sample_inputs
from razor.models.task import auto_class
from razor.quant import CodedWeight, Float16, Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from razor.export.compressed import Compressed

TEXT = (
    "The harbour was quiet when the last boat came in. Two men carried the nets ashore, and a third counted "
    "crates: 12, 13, 14. Nobody spoke of the storm, though everyone had seen its clouds."
)
"""What models are compared on: 64 tokens of it at most."""

TIGHT = 1e-4
"""Largest difference of fp32 logits, in units of the largest logit."""


def compare_loaded(
    compressed: Compressed,
    folder: Path,
    dtype: torch.dtype,
    rounded: Container[str] | None,
    activations: bool = False,
    **options: Any,
) -> tuple[dict[str, Any], str]:
    """Load a folder with Transformers and compare its logits with those of the bare packed model.

    Args:
        compressed: what was exported.
        folder: the export.
        dtype: that it names.
        rounded: names of the weights that it holds in this dtype, or that its runtime decodes to it; None: all.
        activations: whether the folder names quantized activations; in fp32 they are switched off.
        options: of `from_pretrained`.

    Returns:
        What came out, as data and in a sentence.

    Raises:
        RazorError: Transformers does not load it, or it is another model.
    """
    model = bare_model(compressed, torch.float32)
    rounded_weights(model, rounded, dtype)
    exact = logits(model, compressed)
    del model
    tight = gap(_logits(compressed, folder, torch.float32, False, options), exact)
    if not tight <= TIGHT:
        raise RazorError(
            f"'{folder}', loaded by Transformers, gives other fp32 logits than the packed model without quantized "
            f"activations and KV cache (by {tight:.2g} of the largest)."
        )
    own = _logits(compressed, folder, dtype, activations, options)
    if not own.isfinite().all():
        raise RazorError(
            f"'{folder}' overflows in {dtype_name(dtype)}, in which runtimes would compute: export=[packed,dense]."
        )
    student = logits(bare_model(compressed, compressed.compute_dtype, activations), compressed)
    runtime, computed = dtype_name(dtype), dtype_name(compressed.compute_dtype)
    facts = {
        "tokens": len(own),
        "fp32 logits": tight,
        f"KL({computed} student || {runtime})": kl(student, own),
        f"KL({computed} student || fp32)": kl(student, exact),
    }
    equal = "equal" if tight == 0 else f"are within {tight:.1g} of the largest of"
    quantized = " with quantized activations" if activations else ""
    return facts, (
        f"Loaded by Transformers: its fp32 logits on {len(own)} tokens {equal} those of the packed model without "
        f"quantized activations and KV cache. Computing in {runtime}{quantized}, it is {kl(student, own):.1g} nats "
        f"a token (KL) from the student in {computed}, which is itself {kl(student, exact):.1g} from fp32."
    )


def _logits(
    compressed: Compressed, folder: Path, dtype: torch.dtype, activations: bool, options: dict[str, Any]
) -> Tensor:
    from transformers import AutoModelForCausalLM

    try:
        # a runtime may compile its kernels, which takes minutes and changes nothing here
        with quiet(), redirect_stderr(io.StringIO()), torch.compiler.set_stance("force_eager"):
            model = AutoModelForCausalLM.from_pretrained(
                str(folder), dtype=dtype, local_files_only=True, **options
            )
            for module in model.modules():
                if getattr(module, "quantization_scheme", None) is not None:  # of compressed-tensors
                    setattr(module, "quantization_enabled", activations)  # noqa: B010 - no module has it declared
            return logits(model, compressed)
    except RazorError:
        raise
    except Exception as error:  # whatever Transformers or the format's own package makes of it
        reason = " ".join(str(error).split())[:300]
        raise RazorError(
            f"'{folder}' is not loaded by Transformers ({type(error).__name__}: {reason})."
        ) from error


def bare_model(compressed: Compressed, dtype: torch.dtype, activations: bool = False) -> PreTrainedModel:
    """The packed model anew, computing in a dtype; KV cache in 16 bits, and activations too unless wanted."""
    from transformers import AutoConfig

    modules = dict(compressed.plan.modules)
    if not activations:
        modules = {name: replace(place, activations=None) for name, place in modules.items()}
    config = AutoConfig.from_pretrained(str(compressed.folder), local_files_only=True)
    config.quantization_config |= {
        "plan": Plan(modules, None, compressed.plan.rest).to_dict(),
        "compute_dtype": dtype_name(dtype),
    }
    config.dtype = dtype_name(dtype)
    with quiet():
        model = auto_class(config).from_pretrained(
            str(compressed.folder), config=config, local_files_only=True
        )
    return model.eval()


def rounded_weights(model: PreTrainedModel, names: Container[str] | None, dtype: torch.dtype) -> None:
    """Round what a bare model computes with to a dtype, in place, as a folder or a runtime that decodes to it does.

    Args:
        model: from `bare_model`.
        names: of the planned weights that are rounded; None: all. What no plan covers always is.
        dtype: to round to; the model goes on computing in its own.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).to(parameter.dtype)
    for path, module in list(model.named_modules(remove_duplicate=False)):
        coded = module._modules.get("coded")
        if isinstance(coded, CodedWeight) and (names is None or path in names):
            held = Float16(dtype_name(dtype))
            values = held.pack(held.encode(coded.view.matrix(coded(torch.float32))))
            module._modules["coded"] = CodedWeight(held, coded.shape, values, view=coded.view)


def logits(model: PreTrainedModel, compressed: Compressed) -> Tensor:
    """fp32 logits [tokens, vocabulary] of a model on a few words, or [images, classes] on a few images."""
    if compressed.tokenizer is None:
        with torch.no_grad():
            return model.eval()(**sample_inputs(model, compressed.config)).logits.float()
    tokens = compressed.tokenizer(TEXT, return_tensors="pt").input_ids[:, :64]
    with torch.no_grad():
        return model.eval()(input_ids=tokens, use_cache=False).logits[0].float()


def gap(found: Tensor, expected: Tensor) -> float:
    """Largest difference of two tensors, in units of the largest number of the second."""
    return float((found - expected).abs().max() / expected.abs().max())


def kl(first: Tensor, second: Tensor) -> float:
    """Mean KL divergence of the second from the first, of logits [tokens, vocabulary], in nats a token."""
    left, right = first.double().log_softmax(-1), second.double().log_softmax(-1)
    return float((left.exp() * (left - right)).sum(-1).mean())


@contextmanager
def quiet() -> Iterator[None]:
    """No bars of Transformers while something small is loaded."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
