"""Where a run's training starts: plain rounding, or what a start made of it on some of the training text.

A start takes a minute or two and lies in the first checkpoint like everything that was trained since. A run that
was killed before it has one starts anew, and comes to the same; what the start did is kept in the run's folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from razor import processes
from razor.data.corpus import Corpus
from razor.errors import RazorError
from razor.storage import atomic_write

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from razor.train.job import Job

START = "start.json"
"""In the folder of a run: what its start did."""


def started(job: Job, student: PreTrainedModel, base: PreTrainedModel, corpus: Corpus) -> PreTrainedModel:
    """A new student of `base` where the job's training starts; the same model, on the CPU."""
    if job.start is None:
        return student
    batches = job.start.batches(corpus.text, job.teaching.seed)
    done = job.start(nn.Module.to(student, job.settings.device), batches, base)
    nn.Module.to(student, "cpu")
    if processes.rank() == 0:
        print(f"start: {done}", flush=True)
        with atomic_write(job.folder / START) as temporary:
            temporary.write_text(json.dumps(done.to_dict(), indent=1), encoding="utf-8")
    return student


def check_same_start(student: PreTrainedModel) -> None:
    """Raise RazorError if processes came to other codes than the first: each would train a student of its own."""
    sums = float(sum(parameter.detach().double().sum() for parameter in student.parameters()))
    if len(set(processes.gathered(sums))) > 1:
        raise RazorError(
            "Processes of this run found different codes by start=gptq: their processors round differently. Start "
            "on machines of one kind, or with start=none."
        )


def start_facts(folder: Path) -> dict[str, Any]:
    """What report.json says of the start; nothing of plain rounding."""
    path = folder / START
    return {"start": json.loads(path.read_text(encoding="utf-8"))} if path.is_file() else {}
