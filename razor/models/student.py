"""A student: the teacher's copy, quantized by a plan."""

from __future__ import annotations

import copy
import itertools
from typing import TYPE_CHECKING

import torch

from razor.errors import RazorError
from razor.models.attention import quantize_kv
from razor.quant import Plan, quantize_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def make_student(teacher: PreTrainedModel, plan: Plan, compute_dtype: torch.dtype) -> PreTrainedModel:
    """A trainable quantized copy of `teacher`; the teacher is left as it was.

    Its parameters are fp32 latents and it computes in `compute_dtype`.

    Raises:
        RazorError: the plan does not fit, or the model makes logits in a way the losses do not follow.
    """
    check_head(teacher)
    student = copy.deepcopy(teacher)
    quantize_in_place(student, plan, compute_dtype)
    return student.requires_grad_(True).train()


def quantize_in_place(
    model: PreTrainedModel, plan: Plan, compute_dtype: torch.dtype, trained: bool = True
) -> None:
    """Weights, activations, keys and values of `model`, by a plan; `trained` as in `quantize_modules`.

    Raises:
        RazorError: the plan does not fit.
    """
    quantize_modules(model, plan, compute_dtype, trained)
    if plan.kv_cache is not None:
        quantize_kv(model, plan.kv_cache)


def sharing(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model with the same parameters and buffers: it stays as it is while the other is quantized."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def check_head(model: PreTrainedModel) -> None:
    """Raise RazorError if logits are more than a linear map of the last hidden state."""
    for option in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        value = getattr(model.config.get_text_config(), option, None)
        if value not in (None, 1, 1.0):
            raise RazorError(
                f"{type(model).__name__} changes its logits after the head ({option}={value}), which the losses "
                "do not follow yet."
            )
