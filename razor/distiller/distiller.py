"""One call from tokens (or pixels) to a loss: teacher, student and the losses of a recipe between them.

The order is the whole method. The teacher runs without gradient and records what the losses look at; the
objective settles what depends on the teacher alone (EAKLD's gamma, AFD's layers); the student runs and
records just the layers that were chosen; the losses make logits chunk by chunk from hidden states, so the
[tokens, vocabulary] tensor never exists.

    distiller = razor.Distiller(recipe, student, teacher)
    loss, parts = distiller(input_ids=ids, attention_mask=mask, labels=labels)
    loss.backward()
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from razor.distill import Objective, Samples
from razor.distiller.inputs import batch_of
from razor.errors import RazorError
from razor.models import record, shape_of
from razor.models.student import check_head
from razor.quant.anatomy import head_of, reads_images
from razor.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Distiller:
    """The losses between a student and its teacher. No module: it owns neither, and saves nothing.

    Args:
        recipe: what `Recipe.load` takes, or an `Objective`.
        student: the model in training, as `razor.quantize` returns it.
        teacher: the 16-bit model, which is frozen here and follows the student to its device; None if no loss
            looks at it.
        cached: "sampled" or "topk" if every batch brings the teacher's cached targets of that kind, in place of
            a teacher.

    Raises:
        RazorError: no losses; a teacher that is missing, is the student itself, or does not fit it; a loss that
            cached targets do not serve.
    """

    def __init__(
        self,
        recipe: Recipe | Objective | Mapping[str, Any] | str | Path,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None = None,
        cached: str | None = None,
    ) -> None:
        self.objective = _objective(recipe)
        self.student, self.teacher = student, None
        for model in (student, teacher):
            if model is not None and not hasattr(model, "get_decoder"):
                raise RazorError(
                    "Distiller wants a causal language model or an image classifier of Transformers itself, not a "
                    f"{type(model).__name__} (of a wrapper: wrapper.module)."
                )
        check_head(student)
        self.cached = cached
        if not self.objective.needs_teacher or cached is not None:
            if cached is not None:
                self.objective.check_cached(cached)
            self.objective.fit(shape_of(student), None)
            return
        if teacher is None:
            raise RazorError(
                f"The losses {', '.join(self.objective.of_teacher)} need a teacher: "
                "Distiller(recipe, student, teacher)."
            )
        self._check_pair(student, teacher)
        self.teacher = teacher.eval().requires_grad_(False)

    def __call__(
        self,
        batch: Samples | None = None,
        *,
        input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        """The weighted loss of a micro-batch (scalar, with gradient) and everything worth logging by name.

        Args:
            batch: a ready `Batch` or, for an image classifier, `ImageBatch`, instead of all the others.
            input_ids: [B, T] tokens; for these and the others see `batch_of`.
            labels: [B, T], not shifted, -100 where there is no loss.
            attention_mask: [B, T] 1 on text, 0 on padding.
            position_ids: [B, T] restarting with each packed document.
            documents: [B, T] index of the document, -1 on padding.

        Raises:
            RazorError: inputs that do not fit; nothing has run yet.
        """
        given = (input_ids, labels, attention_mask, position_ids, documents)
        if batch is not None:
            if any(tensor is not None for tensor in given):
                raise RazorError("Give a Batch or tensors by name, not both.")
            if not isinstance(batch, Samples):
                raise RazorError("Give tensors by name: distiller(input_ids=..., labels=...).")
            return self.loss(batch)
        if reads_images(self.student):
            raise RazorError(
                f"{type(self.student).__name__} reads images: "
                "distiller(razor.distill.ImageBatch.of(pixels, classes))."
            )
        if input_ids is None or labels is None:
            missing = "input_ids" if input_ids is None else "labels"
            raise RazorError(
                f"{missing} is missing. labels is input_ids with -100 wherever there should be no loss."
            )
        if wrong := [type(x).__name__ for x in given if not isinstance(x, (Tensor, type(None)))]:
            raise RazorError(f"Give tensors, not a {wrong[0]} (tokenizers make them by return_tensors='pt').")
        embedding: Any = self.student.get_input_embeddings()
        if input_ids.device != embedding.weight.device:
            raise RazorError(f"input_ids is on {input_ids.device}, the student on {embedding.weight.device}.")
        vocabulary = embedding.num_embeddings
        return self.loss(batch_of(input_ids, labels, vocabulary, attention_mask, position_ids, documents))

    @property
    def trained(self) -> nn.ModuleList:
        """All that an optimizer should get: the student, and the losses, of which some learn a projection."""
        return nn.ModuleList([self.student, self.objective])

    def loss(self, batch: Samples) -> tuple[Tensor, dict[str, float]]:
        """The same for a batch on the student's device."""
        observed, device = None, batch.labels.device
        self.objective.to(device)
        if self.teacher is not None and self.objective.teaching:
            if next(self.teacher.parameters()).device != device:
                nn.Module.to(self.teacher, device)
            with torch.no_grad():
                observed = record(self.teacher, batch, self.objective.teacher_needs())
        seen = self.objective.observe(observed, batch)
        if observed is not None:
            observed = observed.only(seen.compared)
        student = record(self.student, batch, seen.needs)
        loss, parts = self.objective(student, observed, batch, seen)
        values = {f"loss/{name}": value for name, value in parts.items()} | seen.statistics
        for name, facts in seen.facts.items():
            values |= {f"{name}/{key}": value for key, value in facts.items()}
        for name, layers in seen.layers.items():
            values |= {f"{name}/layer_{rank}": float(layer) for rank, layer in enumerate(layers)}
        return loss, values | {
            f"weight/{name}": self.objective.now[name] for name in self.objective.scheduled
        }

    def _check_pair(self, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
        if teacher is student:
            raise RazorError(
                "Teacher and student are one model: razor.quantize works in place, so copy the teacher before "
                "(teacher = copy.deepcopy(model))."
            )
        check_head(teacher)
        own, other = (_vocabulary(model) for model in (student, teacher))
        if own != other:
            if reads_images(student):
                raise RazorError(f"The student tells {own} classes apart, the teacher {other}.")
            raise RazorError(
                f"The student has {own} tokens, the teacher {other}: losses between distributions need one "
                "vocabulary."
            )
        self.objective.fit(shape_of(student), shape_of(teacher))


def _objective(recipe: Recipe | Objective | Mapping[str, Any] | str | Path) -> Objective:
    if isinstance(recipe, Objective):
        return recipe
    loaded = Recipe.load(recipe)
    if loaded.distill is None:
        raise RazorError(
            f"The recipe '{loaded.name}' has no distill section, so there is nothing to minimise."
        )
    return loaded.distill


def _vocabulary(model: PreTrainedModel) -> int:
    head: Any = head_of(model)
    return len(head.weight)
