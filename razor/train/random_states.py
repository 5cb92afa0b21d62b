"""The random numbers of a run go on where they stopped.

Whatever draws while a student trains (a model's dropout, somebody's own loss) must draw after a resume what it
would have drawn without one. A checkpoint therefore keeps the states of Python's, numpy's and torch's generators,
of every process.
"""

from __future__ import annotations

import random
from typing import Any

import lightning as L
import numpy as np
import torch

from razor import processes


def taken() -> dict[str, Any]:
    """The states of all generators of this process, as plain data and tensors."""
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def given_back(states: dict[str, Any]) -> None:
    """Put all generators of this process into the states that `taken` gave."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if len(states["cuda"]) == torch.cuda.device_count() and states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])


class RandomStates(L.Callback):
    """Keeps the generators' states in checkpoints.

    Until training begins all processes draw the same (what is made at random must be the same everywhere), from
    then on each its own. A process that a checkpoint knows nothing of, because the run had fewer, starts anew.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._kept: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        """Of every process."""
        return {"states": processes.gathered(taken())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until training begins: scoring comes before it."""
        self._kept = state_dict["states"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the states back, or give every process but the first a seed of its own."""
        rank = processes.rank()
        if rank < len(self._kept):
            given_back(self._kept[rank])
        elif rank:
            L.seed_everything(self.seed + 1000 * trainer.global_step + rank, verbose=False)
