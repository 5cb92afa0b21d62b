"""Teacher and student of the peer's side, and the rows that go through them. Runs in the peer's environment.

Quantization, KV cache and losses are calls of the peer's API. Around them:

* Latents in fp32 under autocast to bf16; the teacher in bf16. Its loss gets outputs in fp32 outside of autocast, as
  Hugging Face's trainer, of which its own is one, hands them out on a GPU: in bf16 its KL would be off by tens of
  percent.
* Labels as its trainer takes them, token t at position t. So its KL, its features and gamma count the position of
  each response token and not, as the cross entropy, the one before: the first token of an answer gets no KL, and
  the position after the last one does.
* `layout=joined`: a micro-batch's documents end to end in one row, positions that restart with each document, and a
  mask of four dimensions that keeps documents apart. Its cache accepts that, and groups never cross a token, so a
  document's logits are those that it has alone. Nothing is padded, for padding takes part in its choice of the
  layers to compare: where a third of the positions were padding, it fell on a layer with a few huge activations.
  A sample of its means is then the micro-batch. `layout=documents`: each document a row of its own, filled up at
  the right, as its trainer has it; a sample is a document.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from edgerazor import EdgeRazor
from peer.configuration import configuration
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

IGNORE = -100


@dataclass
class Rows:
    """Some rows: [B, T] each.

    Attributes:
        ids: tokens.
        labels: of held-out rows, the token that a position has to predict; of training rows, the position's own
            token if it belongs to a response.
        positions: restart at 0 with each document.
        documents: whose a token is; -1 for padding.
    """

    ids: Tensor
    labels: Tensor
    positions: Tensor
    documents: Tensor

    @classmethod
    def read(cls, arrays: dict[str, Tensor], name: str) -> Rows:
        """All rows of a part ("train", "held_out") of the file of batches."""
        keys = ("input_ids", "labels", "position_ids", "documents")
        return cls(*(arrays[f"{name}.{key}"].long() for key in keys))

    def __len__(self) -> int:
        return len(self.ids)

    def some(self, start: int, stop: int) -> Rows:
        """Rows from start to stop."""
        return Rows(*(x[start:stop] for x in (self.ids, self.labels, self.positions, self.documents)))

    def by_document(self, padding: int) -> Rows:
        """Each document in a row of its own, filled up at the right."""
        found = []
        for ids, labels, documents in zip(self.ids, self.labels, self.documents, strict=True):
            own = documents[documents >= 0].unique()
            found += [(ids[documents == each], labels[documents == each]) for each in own]
        length = max(len(ids) for ids, _ in found)
        alone = Rows(*(torch.full((len(found), length), fill) for fill in (padding, IGNORE, 0, -1)))
        for row, (ids, labels) in enumerate(found):
            alone.ids[row, : len(ids)], alone.labels[row, : len(ids)] = ids, labels
            alone.documents[row, : len(ids)] = 0
        alone.positions[:] = torch.arange(length)
        return alone

    def joined(self) -> Rows:
        """All documents end to end in one row, without padding."""
        real = self.documents >= 0  # numbered over the micro-batch, so that neighbours of two rows differ
        return Rows(*(x[real][None] for x in (self.ids, self.labels, self.positions, self.documents)))

    def mask(self) -> Tensor:
        """[B, 1, T, T]: who sees whom. Padding sees padding, so that no row of the attention is empty."""
        same = self.documents[:, None, :, None] == self.documents[:, None, None, :]
        return same & torch.ones(same.shape[-2:], dtype=torch.bool).tril()

    def predicted(self) -> Tensor:
        """Training labels without those that the cross entropy, which shifts, would ask of a foreign token."""
        return self.labels.masked_fill(self.positions == 0, IGNORE)


def micro_batches(rows: Rows, at_once: int) -> Iterator[Rows]:
    """Rows as the steps take them."""
    return (rows.some(start, start + at_once) for start in range(0, len(rows), at_once))


@dataclass
class Models:
    """Teacher and student, and how they are called."""

    peer: EdgeRazor
    teacher: Any
    student: Any
    mixed: bool = True

    def taught(self, rows: Rows, states: bool = False) -> Any:
        """The teacher's pass."""
        with torch.no_grad():
            return self.teacher(
                input_ids=rows.ids,
                position_ids=rows.positions,
                attention_mask=rows.mask(),
                output_hidden_states=states,
                use_cache=False,
            )

    def learned(self, rows: Rows, kv: bool = True, **more: Any) -> Any:
        """The student's pass: a new quantizing cache each time, as its trainer has it."""
        cache = self.peer.create_kv_cache(model_config=self.student.config) if kv else None
        with torch.autocast("cpu", torch.bfloat16) if self.mixed else nullcontext():
            return self.student(
                input_ids=rows.ids,
                position_ids=rows.positions,
                attention_mask=rows.mask(),
                past_key_values=cache,
                use_cache=kv,
                **more,
            )

    def loss(self, rows: Rows) -> Tensor:
        """Its loss of a micro-batch."""
        own = self.learned(rows, labels=rows.predicted(), output_hidden_states=True)
        other = self.taught(rows, states=True)
        outputs = [
            {
                "logits": out.logits.float(),
                "hidden_states": tuple(state.float() for state in out.hidden_states),
            }
            for out in (own, other)
        ]
        total, _ = self.peer.compute_loss(outputs[0] | {"loss": own.loss}, outputs[1], rows.labels)
        return total


def made(job: dict[str, Any]) -> Models:
    """Both models with the teacher's weights, the student quantized by the peer."""
    config = LlamaConfig(**job["architecture"])
    peer = EdgeRazor(config=configuration(**job["configuration"]))
    teacher = loaded(config, job["teacher"], torch.bfloat16).requires_grad_(False)
    return Models(peer, teacher, peer.quantize(loaded(config, job["teacher"], torch.float32)))


def loaded(config: LlamaConfig, file: str, dtype: torch.dtype) -> Any:
    """The 16-bit model."""
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
    missing, unknown = model.load_state_dict(load_file(file), strict=False)
    if unknown or set(missing) - ({"lm_head.weight"} if config.tie_word_embeddings else set()):
        sys.exit(f"{file} does not fit the model: missing {missing}, unknown {unknown}.")
    return model
