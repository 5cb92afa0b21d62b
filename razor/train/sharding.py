"""FSDP2: every process holds a part of each matrix, and all of it only while it is used.

`fully_shard` cuts parameters along their rows, gathers those of a layer just before its forward (and again before
its backward) and scatters gradients after. The student's layers are units of their own; embedding, head, final
norm and whatever losses learn belong to the module as a whole and stay gathered through a step, because losses
read the head after the model has run. A teacher is cut by its layers alone: nothing of it is ever trained.

A gathered matrix is quantized where it is used, so codes are those of the whole matrix, the same as without
sharding, and what would be remembered of it is let go: remembering it would undo the sharding.

Source: PyTorch FSDP2 (torch.distributed.fsdp.fully_shard), arXiv 2411.00284.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
)

from razor.errors import RazorError
from razor.models import layers_of
from razor.quant import FakeQuantizer

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from razor.train.module import DistillModule


class Sharded(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, over all processes, with checkpoints of one file like any other's.

    Such a checkpoint goes on with any number of processes, and without sharding. Gathering it takes memory for
    the whole student and its optimizer on the machine of process 0.

    Args:
        world: number of processes.
    """

    def __init__(self, world: int) -> None:
        super().__init__(data_parallel_size=world, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Whole and by names, in process 0; empty in the others."""
        assert self.model is not None
        inner = getattr(optimizer, "_optimizer", optimizer)  # of Lightning's wrapper
        return get_optimizer_state_dict(self.model, inner, options=_whole())

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load module and optimizer; a parameter that was never trained has no state, and gets none.

        Raises:
            RazorError: the checkpoint is of a module with other parameters.
        """
        module = self.lightning_module
        assert module is not None
        kept = torch.load(checkpoint_path, map_location="meta", mmap=True, weights_only=True)
        if set(kept["state_dict"]) != set(module.state_dict()):
            raise RazorError(f"'{checkpoint_path}' holds a student with other parameters than this run's.")
        strict, module.strict_loading = module.strict_loading, False
        try:
            checkpoint = super().load_checkpoint(checkpoint_path, weights_only)
        finally:
            module.strict_loading = strict
        for optimizer, state in zip(self.optimizers, kept["optimizer_states"], strict=True):
            for name, parameter in module.named_parameters():
                if name not in state["state"]:
                    optimizer.state.pop(parameter, None)
        return checkpoint

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Through the module's forward, whose hooks gather what belongs to the module as a whole."""
        assert self.lightning_module is not None and self.model is not None
        return self._forward_redirection(self.model, self.lightning_module, "training_step", *args, **kwargs)


def shard_modules(module: DistillModule, mesh: DeviceMesh, teacher_too: bool) -> None:
    """Cut student and, if wanted, teacher, in place.

    Towers are parts of the whole and not cut layer by layer: gathering a layer takes all processes, and a tower
    runs only where a micro-batch has something for it.
    """
    from torch.distributed.fsdp import fully_shard

    over = mesh["data_parallel"]
    for layer in layers_of(module.student):
        fully_shard(layer, mesh=over)
    _remember(module.student, False)
    fully_shard(module, mesh=over)
    # scoring runs layers before the module itself, and FSDP2 would take the first of them for the root
    module._get_fsdp_state()._lazy_init()  # type: ignore[operator]
    if teacher_too and module.teacher is not None:
        for layer in layers_of(module.teacher):
            fully_shard(layer, mesh=over, reshard_after_forward=True)


def is_sharded(model: nn.Module) -> bool:
    """Whether any parameter is cut over processes."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


@contextmanager
def whole(module: DistillModule, teacher: nn.Module) -> Iterator[None]:
    """While it is open every process has both models whole, and may run them as often as it likes.

    Scoring is dealt out among the processes, and they do not all run a model equally often, which gathering
    layer by layer would ask of them.
    """
    if not is_sharded(module):
        yield
        return
    units = [*_units(module.student), *_units(teacher)]
    everything: list[Any] = [module, *units]
    for unit in everything:
        unit.unshard()
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
    _remember(module.student, True)
    try:
        yield
    finally:
        _remember(module.student, False)
        for unit in units:
            unit.set_reshard_after_forward(True, recurse=False)
        for unit in everything:
            unit.reshard()


def _units(model: nn.Module) -> list[Any]:
    from torch.distributed.fsdp import FSDPModule

    return [part for part in model.modules() if isinstance(part, FSDPModule)]


def whole_state(model: nn.Module) -> dict[str, Any]:
    """The state of a model that may be cut, whole, on the CPU; empty but in process 0."""
    return get_model_state_dict(model, options=_whole())


def _whole() -> StateDictOptions:
    return StateDictOptions(full_state_dict=True, cpu_offload=True)


def full(tensor: Tensor) -> Tensor:
    """A tensor that may be cut, whole."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _remember(model: nn.Module, remember: bool) -> None:
    for part in model.modules():
        if isinstance(part, FakeQuantizer):
            part.remembers, part._remembered = remember, None
