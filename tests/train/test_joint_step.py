"""Two real processes of PyTorch's data parallelism: the step of one process with the joint batch."""

from __future__ import annotations

import copy
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import razor
from razor.cli import composed, model_source
from razor.data.document import Document
from razor.data.packing import pack
from razor.data.steps import StepBatches
from razor.distill import Batch

INT4, INT8 = ({"kind": "Integer", "width": width, "group": 32} for width in (4, 8))
RECIPE = {
    "name": "two",
    "compute_dtype": "float32",
    "quant": {
        "weights": {"kind": "Ternary", "group": 32},
        "embedding": INT4,
        "activations": INT8,
        "kv_cache": None,
    },
    "distill": {
        # what a process would settle for its own part of the batch is frozen: gamma and the layers
        "losses": {
            "task": {"kind": "CrossEntropy"},
            "eakld": {"kind": "EAKLD", "gamma": 0.4},
            "features": {"kind": "FixedFeatures", "layers": [1, -1]},
            "attention": {"kind": "AttentionRelations"},
        },
        "weights": {"task": 0.1, "eakld": 2.0, "features": 0.5, "attention": 0.5},
    },
}
LENGTHS = (40, 9, 31, 5, 5, 22, 38, 12)


class Step(nn.Module):
    """A student under its losses, as a module that DistributedDataParallel can wrap."""

    def __init__(self) -> None:
        super().__init__()
        teacher = model_source(composed("size", ["model=tiny_llama"])).load(torch.float32)
        self.student = razor.quantize(copy.deepcopy(teacher), RECIPE)
        self._distiller = razor.Distiller(RECIPE, self.student, teacher)

    def forward(self, batch: Batch) -> Tensor:
        loss, _ = self._distiller.loss(batch)
        return loss * batch.share


def micro_batches(rank: int, world: int) -> StepBatches:
    generator = torch.Generator().manual_seed(0)
    documents = []
    for length in LENGTHS:
        tokens = torch.randint(0, 256, (length,), generator=generator).numpy().astype("int32")
        documents.append(Document(tokens, (torch.arange(length) >= length // 3).numpy()))
    rows = pack(documents, sequence_length=48)
    each = len(rows) // (2 if world == 2 else 1)
    return StepBatches(rows, 1, rows_per_batch=each, rank=rank, world=world)


def gradients(step: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in step.named_parameters() if p.grad is not None}


def work(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    step = nn.parallel.DistributedDataParallel(Step())
    step(micro_batches(rank, 2)[0]).backward()
    torch.save(gradients(step.module), Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_make_the_step_of_one(tmp_path: Path) -> None:
    assert len(micro_batches(0, 1).rows) % 2 == 0
    shares = [micro_batches(rank, 2)[0].share for rank in (0, 1)]
    assert shares[0] != pytest.approx(1) and sum(shares) == pytest.approx(2)  # unequal numbers of documents
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments: Any = (port, str(tmp_path))
    torch.multiprocessing.spawn(work, arguments, nprocs=2)
    one = Step()
    one(micro_batches(0, 1)[0]).backward()
    wanted = gradients(one)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found.keys() == wanted.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-6, msg=name)
