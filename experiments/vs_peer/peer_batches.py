"""What the peer's side is given: the teacher's weights, and the very micro-batches of a run of train.py.

The config of that run is composed as train.py composes it, its corpus is built and its micro-batches are made by
the same calls; only then are they written down. Nothing of a run but seed, data and number of steps decides them,
so all widths and learning rates share one folder.

**Labels.** Razor's are shifted: `labels[t]` is what position t has to predict. Transformers and the peer want
token t's own label at position t, or -100. So training labels are shifted back; a plain text's first token, which
nothing precedes, gets its label as it has it in Hugging Face's collators. Held-out labels stay shifted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from razor.cli import config as cli
from razor.cli.teacher import teaching
from razor.data.corpus import Corpus
from razor.data.steps import StepBatches
from razor.distill import IGNORE, Batch
from razor.errors import RazorError
from razor.storage import atomic_write
from razor.train.facts import text_hashes
from razor.train.teaching import Teaching

KEYS = ("input_ids", "labels", "position_ids", "documents")


@dataclass
class Run:
    """A run of train.py, as far as the peer needs it.

    Attributes:
        config: composed from the overrides.
        teaching: model, text and optimizer settings.
        corpus: rows to train on and to be scored on.
        batches: its micro-batches.
    """

    config: Any
    teaching: Teaching
    corpus: Corpus
    batches: StepBatches

    @classmethod
    def of(cls, overrides: Sequence[str]) -> Run:
        """Compose and read; the teacher writes its text if it has not yet.

        Raises:
            RazorError: whatever train.py would say, or what the peer's side cannot do.
        """
        config = cli.composed("train", overrides)
        taught = teaching(config)
        settings = taught.settings
        if settings.max_minutes is not None or settings.micro_batches != 1:
            raise RazorError("The peer's side takes trainer.max_steps, one micro-batch each.")
        if taught.another or taught.cached or not taught.reading.pack:
            raise RazorError(
                "The peer's side is the model itself as teacher=same, and packed rows (data.pack=true)."
            )
        architecture_of(taught.model.config())
        taught.check()
        corpus = taught.corpus()
        batches = StepBatches(corpus.train, settings.max_steps, config.data.rows_per_batch, 1, taught.seed)
        return cls(config, taught, corpus, batches)

    def again(self, overrides: Sequence[str]) -> Run:
        """The same text and order under another optimizer or width."""
        config = cli.composed("train", overrides)
        return replace(
            self, config=config, teaching=replace(self.teaching, settings=teaching(config).settings)
        )

    @property
    def learning_rates(self) -> list[float]:
        """Of each step, as train.py's schedule has it."""
        settings = self.teaching.settings
        factors = (
            settings.learning_rate_factor(step, settings.max_steps) for step in range(settings.max_steps)
        )
        return [settings.learning_rate * factor for factor in factors]

    @property
    def held_out(self) -> list[Batch]:
        """What is scored, as train.py scores it."""
        return list(self.corpus.held_out.batches(self.config.data.rows_per_batch))


def architecture_of(config: Any) -> dict[str, Any]:
    """A Llama's shape in the words of the Transformers that the peer runs on.

    Raises:
        RazorError: another kind of model, or positions that those words do not tell.
    """
    rope = dict(getattr(config, "rope_parameters", None) or {"rope_theta": 10_000.0})
    if config.model_type != "llama" or rope.get("rope_type", "default") != "default":
        raise RazorError(
            f"model_type={config.model_type}, rope_type={rope.get('rope_type')}: the peer's side is tried with "
            "llama and default rotary positions alone (model=smollm2_135m, model=tiny_llama)."
        )
    names = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
        "head_dim max_position_embeddings rms_norm_eps tie_word_embeddings attention_bias mlp_bias hidden_act"
    )
    return {name: getattr(config, name) for name in names.split()} | {"rope_theta": rope["rope_theta"]}


def unshifted(batch: Batch) -> Tensor:
    """[B, T] labels in Transformers' way: of each response token, itself, at its own position."""
    labels = torch.full_like(batch.labels, IGNORE)
    labels[:, 1:] = batch.labels[:, :-1]
    for row, documents in enumerate(batch.documents):
        for document in documents[documents >= 0].unique():
            own = (documents == document).nonzero()[:, 0]
            if bool(batch.valid[row, own[:-1]].all()):  # plain text
                labels[row, own[0]] = batch.input_ids[row, own[0]]
    return labels


def written(run: Run, folder: Path) -> dict[str, Path]:
    """Batches and teacher as files in a folder, written once.

    Returns:
        paths of "batches" (int32 [rows, T] by part and key) and of the "teacher" (bf16).

    Raises:
        RazorError: the folder holds those of another run.
    """
    told = {
        "text": text_hashes(run.corpus),
        "model": run.teaching.model.fingerprint(),
        "steps": run.batches.max_steps,
        "rows_per_batch": run.batches.rows_per_batch,
        "seed": run.batches.seed,
    }
    mark, paths = (
        folder / "made.json",
        {name: folder / f"{name}.safetensors" for name in ("batches", "teacher")},
    )
    if mark.is_file():
        if json.loads(mark.read_text()) != told:
            raise RazorError(
                f"'{folder}' holds batches of another text, seed or number of steps: remove it, or another rung=."
            )
        return paths
    with atomic_write(paths["batches"]) as temporary:
        save_file(arrays(run), temporary)
    with atomic_write(paths["teacher"]) as temporary:
        model = run.teaching.model.load(torch.bfloat16)
        tied = model.config.tie_word_embeddings
        state = {k: v for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}
        save_file(state, temporary)
    with atomic_write(mark) as temporary:
        temporary.write_text(json.dumps(told, indent=1))
    return paths


def arrays(run: Run) -> dict[str, Tensor]:
    """Every row of training in its order, and every held-out row: "train.labels" and so on."""
    train = [run.batches[index] for index in range(len(run.batches))]
    found = {f"train.{key}": [getattr(batch, key) for batch in train] for key in KEYS}
    found["train.labels"] = [unshifted(batch) for batch in train]
    found |= {f"held_out.{key}": [getattr(batch, key) for batch in run.held_out] for key in KEYS}
    return {name: torch.cat(parts).int().contiguous() for name, parts in found.items()}
