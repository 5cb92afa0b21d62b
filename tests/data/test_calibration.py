"""Text that is looked at before training is what training comes to last."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from razor.data.calibration import calibration
from razor.data.document import Document
from razor.data.packing import pack
from razor.data.steps import StepBatches


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_rows_are_those_that_training_comes_to_last(seed: int) -> None:
    """Fitted to them, a student learns little from them; seen first, they would waste the best steps."""
    documents = [Document(np.full(8, row, dtype="int32"), np.ones(8, dtype=bool)) for row in range(40)]
    rows = pack(documents, sequence_length=8)
    batches = calibration(rows, 10, seed, tokens=16)
    assert {batch.input_ids.shape for batch in batches} == {(2, 8)}
    looked = torch.cat([batch.input_ids[:, 0] for batch in batches]).tolist()
    steps = StepBatches(rows, 20, rows_per_batch=2, seed=seed)
    trained = [int(row) for number in range(20) for row in steps[number].input_ids[:, 0]]
    assert sorted(trained) == list(range(40)) and set(trained[-10:]) == set(looked)
    fewer = torch.cat([batch.input_ids[:, 0] for batch in calibration(rows, 4, seed, tokens=1)])
    assert fewer.tolist() == looked[:4]
