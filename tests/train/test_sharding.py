"""A student cut over two processes takes the steps of a whole one, and can be made whole."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from razor.cli import build, composed, model_source
from razor.distill import Batch
from razor.evals.held_out import score_held_out
from razor.models import make_student
from razor.optimizer import parameter_groups
from razor.quant import FakeQuantizer
from razor.train.module import DistillModule
from razor.train.sharding import is_sharded, shard_modules, whole, whole_state

STEPS = 3
WORDS = (
    "model=tiny_llama",
    "distill=eakld_afd",
    "distill.losses.eakld.gamma=0.4",
    "trainer=cpu",
    "trainer.compute_dtype=float32",
)


def batch(row: int) -> Batch:
    generator = torch.Generator().manual_seed(row)
    ids = torch.randint(0, 256, (1, 48), generator=generator)
    labels = ids.roll(-1, 1)
    labels[:, :8] = labels[:, -1] = -100
    return Batch(ids, labels, torch.arange(48).expand(1, 48).clone(), torch.zeros(1, 48, dtype=torch.long))


def module(quant: str) -> DistillModule:
    """Teacher and student in fp32; one batch a process, so that an adaptive layer is chosen from the same rows."""
    config = composed("train", [*WORDS, f"quant={quant}"])
    source = model_source(config)
    teacher = source.load(torch.float32)
    student = make_student(teacher, build(config.quant).plan(source.skeleton()), torch.float32)
    return DistillModule(student, teacher, build(config.distill), build(config.trainer), STEPS)


def steps(module: DistillModule, rows: list[int]) -> list[float]:
    """Gradient norms of a few steps of AdamW, each over these rows."""
    optimizer, norms = torch.optim.AdamW(parameter_groups(module, 1e-3, 0.01), fused=True), []
    for _ in range(STEPS):
        for row in rows:
            (module(batch(row)) / len(rows)).backward()
        norm: Any = torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        norms.append(float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm))
        optimizer.step()
        optimizer.zero_grad()
    return norms


def work(rank: int, port: int, folder: str, quant: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,), mesh_dim_names=("data_parallel",))
    sharded = module(quant)
    sharded.forward = lambda batch: sharded.distiller.loss(batch)[0]  # type: ignore[method-assign]
    shard_modules(sharded, mesh, teacher_too=True)
    assert is_sharded(sharded.student) and is_sharded(sharded.teacher)
    largest = max(p.to_local().numel() / p.numel() for p in sharded.parameters() if p.numel() > 1000)  # type: ignore[attr-defined]
    with whole(sharded, sharded.teacher):
        before = score_held_out(
            sharded.student, sharded.teacher, [batch(9)] * (1 + rank)
        )  # not equally often
    norms = steps(sharded, [rank])
    with whole(sharded, sharded.teacher):
        after = score_held_out(sharded.student, sharded.teacher, [batch(9)])
    remembered = [q for q in sharded.modules() if isinstance(q, FakeQuantizer) and q.remembers]
    norms_after = steps(sharded, [rank])  # making it whole has disturbed nothing
    found = {
        "norms": norms + norms_after,
        "kl": (before.kl, after.kl),
        "part": largest,
        "remembered": len(remembered),
        "state": whole_state(sharded.student),
    }
    torch.save(found, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("quant", ["mixed_2p79", pytest.param("w1p58_lsq", marks=pytest.mark.slow)])
def test_two_parts_make_the_steps_of_a_whole(tmp_path: Path, quant: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments: Any = (port, str(tmp_path), quant)
    torch.multiprocessing.spawn(work, arguments, nprocs=2)
    one = module(quant)
    one.forward = lambda batch: one.distiller.loss(batch)[0]  # type: ignore[method-assign]
    assert one.teacher is not None
    before = score_held_out(one.student, one.teacher, [batch(9)]).kl
    norms = steps(one, [0, 1])
    after = score_held_out(one.student, one.teacher, [batch(9)]).kl
    norms += steps(one, [0, 1])
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["norms"] == pytest.approx(norms, rel=1e-3)
        assert found["kl"] == pytest.approx((before, after), rel=1e-3)
        assert found["part"] == pytest.approx(0.5, abs=0.05) and found["remembered"] == 0
        assert bool(found["state"]) == (rank == 0)
    state: dict[str, Tensor] = torch.load(tmp_path / "0.pt")["state"]
    wanted = one.student.state_dict()
    assert state.keys() == wanted.keys()
    for name, weight in wanted.items():
        apart = ~torch.isclose(state[name], weight, rtol=1e-3, atol=1e-4)
        # of a gradient that is zero but for rounding Adam makes a whole step, to either side
        assert apart.sum() <= 1 and torch.isclose(state[name], weight, atol=4e-3).all(), name
