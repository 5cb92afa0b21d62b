"""What processes tell each other; alone, every answer is the trivial one."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from razor import processes


def test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert (processes.rank(), processes.world(), processes.local_world(), processes.started()) == (
        0,
        1,
        1,
        False,
    )
    processes.join()
    assert not torch.distributed.is_initialized()
    assert processes.gathered({"a": 1}) == [{"a": 1}]
    assert processes.totals([1.5, 2]) == [1.5, 2]
    assert processes.anywhere(True) and not processes.anywhere(False)
    with processes.first():
        processes.wait()


def test_before_they_meet_the_environment_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert (processes.rank(), processes.world(), processes.local_world()) == (3, 8, 4)


def work(rank: int, port: int, folder: str) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "RANK": str(rank),
        "WORLD_SIZE": "2",
    }
    torch.set_num_threads(1)
    processes.join()
    place = Path(folder)
    with processes.first():
        if rank == 0:
            time.sleep(0.5)
            (place / "made").write_text("once")
        found = (place / "made").read_text()  # the other one comes here later
    torch.save(
        {
            "found": found,
            "gathered": processes.gathered((rank, "text")),
            "totals": processes.totals([float(rank), 0.25]),
            "anywhere": [processes.anywhere(rank == 1), processes.anywhere(False)],
        },
        place / f"{rank}.pt",
    )
    torch.distributed.destroy_process_group()


def test_two_of_them(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments: Any = (port, str(tmp_path))
    torch.multiprocessing.spawn(work, arguments, nprocs=2)
    for rank in (0, 1):
        assert torch.load(tmp_path / f"{rank}.pt") == {
            "found": "once",
            "gathered": [(0, "text"), (1, "text")],
            "totals": [1.0, 0.5],
            "anywhere": [True, False],
        }
