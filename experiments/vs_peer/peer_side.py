"""The peer's side: its own package trains on the batches that it is given. Runs in the peer's environment.

    python peer_side.py JOB.json

The job names the teacher's weights, the batches, the configuration and a learning rate for every step; what comes
back lies in the job's folder: `latents.safetensors` (fp32) and then `found.json`, each moved into place whole.
Quantization, KV cache and losses are calls of the peer's API. What is ours is the loop around it:

* AdamW, weight decay on matrices only, as in Hugging Face's trainer, of which its own is one; gradients clipped.
* Latents in fp32 under autocast to bf16; the teacher in bf16. Its loss gets outputs in fp32 outside of autocast, as
  that trainer hands them out on a GPU: in bf16 its KL would be off by tens of percent.
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

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from edgerazor import EdgeRazor
from peer.configuration import configuration
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

IGNORE = -100
SCORED_AT_ONCE = 8
"""Rows in a pass of scoring: each pass quantizes all weights again."""
PACKAGES = ("edgerazor", "torch", "transformers")


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


@dataclass
class Expected:
    """Held-out rows, a few at a time, and what the teacher says of them.

    Attributes:
        parts: the rows.
        hidden: of each part, the teacher's last hidden states [valid tokens, width].
        head: makes logits of them.
    """

    parts: list[Rows]
    hidden: list[Tensor]
    head: Any

    @classmethod
    def of(cls, models: Models, rows: Rows) -> Expected:
        """Ask the teacher once; it is scored against at every point of the curve."""
        parts = list(micro_batches(rows, SCORED_AT_ONCE))
        hidden = [models.taught(part, states=True).hidden_states[-1][part.labels != IGNORE] for part in parts]
        return cls(parts, hidden, models.teacher.lm_head)


@torch.no_grad()
def score(models: Models, expected: Expected) -> dict[str, float]:
    """KL(teacher || student) and the like per response token, logits made log-probabilities in fp32."""
    models.student.eval()
    sums, tokens = torch.zeros(4, dtype=torch.float64), 0
    for part, hidden in zip(expected.parts, expected.hidden, strict=True):
        valid, labels = part.labels != IGNORE, part.labels[part.labels != IGNORE]
        own = models.learned(part).logits[valid].float().log_softmax(-1)
        other = expected.head(hidden).float().log_softmax(-1)
        kl = (other.exp() * (other - own)).sum(-1)
        entropies = [-logp.gather(1, labels[:, None])[:, 0] for logp in (own, other)]
        same = (own.argmax(-1) == other.argmax(-1)).float()
        sums += torch.stack([kl, *entropies, same]).double().sum(-1)
        tokens += len(labels)
    kl, entropy, teacher, same = (sums / tokens).tolist()
    found = {"kl": kl, "perplexity": power(entropy), "agreement": 100 * same, "tokens": tokens}
    return found | {"teacher_perplexity": power(teacher)}


def power(entropy: float) -> float:
    """Perplexity, finite unless the entropy is not."""
    return math.exp(min(entropy, 700.0))


@torch.no_grad()
def kv_effect(models: Models, rows: Rows) -> float:
    """Mean absolute change of the student's logits by its quantized keys and values.

    Ends the program if there is none: a model that does not use its cache would silently leave them as they are.
    """
    models.student.eval()
    with_cache, without = (models.learned(rows, kv=kv).logits.float() for kv in (True, False))
    effect = float((with_cache - without).abs().mean())
    if effect == 0:
        sys.exit("The peer's keys and values are not quantized: its cache changes nothing.")
    return effect


def optimizer_of(student: Any, job: dict[str, Any]) -> torch.optim.Optimizer:
    """AdamW; no weight decay on norms."""
    matrices = [p for p in student.parameters() if p.ndim >= 2]
    vectors = [p for p in student.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": job["weight_decay"]},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=job["learning_rates"][0], betas=tuple(job["betas"]), fused=True)


def train(models: Models, rows: Rows, expected: Expected, job: dict[str, Any]) -> dict[str, Any]:
    """All steps, with the held-out KL on the way; a run whose loss is no number any more ends there."""
    rates = job["learning_rates"]
    optimizer = optimizer_of(models.student, job)
    losses: list[float] = []
    seconds: list[float] = []
    held_out, tokens, diverged = score(models, expected), 0, None
    curve = [[0, held_out["kl"]]]
    points = {math.ceil(len(rates) * part) for part in (0.25, 0.5, 0.75, 1)}
    batches, processor = micro_batches(rows, job["rows_per_batch"]), 0.0
    for step, (rate, batch) in enumerate(zip(rates, batches, strict=True), 1):
        started, before = time.perf_counter(), time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = rate
        models.student.train()
        loss = models.loss(batch.joined() if job["layout"] == "joined" else batch.by_document(job["padding"]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(models.student.parameters(), job["clip"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        seconds.append(time.perf_counter() - started)
        processor += time.process_time() - before
        tokens += int((batch.documents >= 0).sum())
        print(f"step {step}/{len(rates)}: loss {losses[-1]:.4f}, {seconds[-1]:.2f} s", flush=True)
        if not math.isfinite(losses[-1]):
            diverged = step
            break
        if step in points:
            held_out = score(models, expected)
            curve.append([tokens, held_out["kl"]])
            print(f"{tokens} tokens: held-out KL {held_out['kl']:.4f}", flush=True)
    counted = {"tokens": tokens, "steps": len(losses), "diverged": diverged, "curve": curve}
    counted |= {"losses": losses, "seconds": sum(seconds), "processor_seconds": processor}
    return counted | {"held_out": held_out if diverged is None else None}


def micro_batches(rows: Rows, at_once: int) -> Iterator[Rows]:
    """Rows as the steps take them."""
    return (rows.some(start, start + at_once) for start in range(0, len(rows), at_once))


def main(job: dict[str, Any]) -> None:
    """Train, score, save."""
    torch.manual_seed(0)  # nothing here is drawn by chance; should the peer draw, it draws the same
    folder = Path(job["folder"])
    arrays = load_file(job["batches"])
    rows, held_out = (Rows.read(arrays, name) for name in ("train", "held_out"))
    models = made(job)
    found: dict[str, Any] = {"kv_effect": kv_effect(models, held_out.some(0, 2))}
    found |= train(models, rows, Expected.of(models, held_out), job)
    exact = replace(models, mixed=False, teacher=models.teacher.float())
    broken = found["diverged"] is not None
    found["held_out_float32"] = None if broken else score(exact, Expected.of(exact, held_out))
    state = {name: value.contiguous() for name, value in models.student.state_dict().items()}
    if models.student.config.tie_word_embeddings:
        del state["lm_head.weight"]
    save(folder / "latents.safetensors", lambda path: save_file(state, path))
    found |= {"job": job, "threads": torch.get_num_threads(), "versions": {p: version(p) for p in PACKAGES}}
    text = json.dumps(plain(found), indent=1)
    save(folder / "found.json", lambda path: path.write_text(text))


def plain(value: Any) -> Any:
    """For JSON, which knows no NaN: null."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    write(part)
    os.replace(part, path)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
