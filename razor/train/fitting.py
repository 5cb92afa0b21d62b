"""One student, trained by Lightning, in one process or in many.

What differs between one process and sixty-four is the strategy: a copy in each (DDP), a part in each (FSDP2, see
`razor.train.sharding`), or gradients and optimizer cut alone (DeepSpeed's ZeRO 2). Data, losses and schedule do
not know of it: a step has the same micro-batches, dealt to however many processes there are.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy

from razor import processes
from razor.data.steps import StepBatches
from razor.distill import LogitsLoss
from razor.quant.anatomy import towers_of
from razor.train.checkpoints import AtomicCheckpointIO, Checkpoints
from razor.train.evaluation import Evaluation
from razor.train.job import Job, Training
from razor.train.loader import StepData
from razor.train.module import DistillModule
from razor.train.progress import Progress
from razor.train.random_states import RandomStates
from razor.train.sharding import Sharded


def fit(
    job: Job,
    module: DistillModule,
    batches: StepBatches,
    evaluation: Evaluation,
    loggers: Sequence[Logger],
    resume_from: Path | None,
) -> Training:
    """Train, from a checkpoint if there is one.

    Raises:
        KeyboardInterrupt: stopped at once, in the middle of a step or of scoring.
    """
    settings, progress = job.settings, Progress()
    # in the order in which they act: what scores comes after what may change the student, what saves comes last
    last = (evaluation, Checkpoints(job.folder / "checkpoints", settings.checkpoint_every))
    sharded = settings.strategy == "deepspeed_zero2"  # writes its own checkpoints, a file per process
    trainer = L.Trainer(
        accelerator=settings.accelerator,
        strategy=strategy_of(module),
        devices=settings.here,
        num_nodes=settings.processes // settings.here,
        max_steps=batches.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=batches.accumulate,
        gradient_clip_val=settings.clip,
        deterministic=settings.deterministic or None,
        logger=list(loggers) or False,
        callbacks=[RandomStates(job.seed), progress, *job.callbacks.values(), *last],
        plugins=None if sharded else [AtomicCheckpointIO()],
        use_distributed_sampler=False,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
        default_root_dir=job.folder,
    )
    if resume_from is not None:
        print(f"Continuing from '{resume_from}'.", flush=True)
    on_interrupt = signal.getsignal(signal.SIGINT)
    L.seed_everything(job.seed, verbose=False)  # whatever was drawn on the way here
    try:
        data = StepData(batches, settings.loader_workers)
        trainer.fit(module, data, ckpt_path=resume_from, weights_only=True)
    except SystemExit as stop:  # what Lightning makes of Ctrl-C, after it turned the signal off
        raise KeyboardInterrupt from stop
    finally:
        signal.signal(signal.SIGINT, on_interrupt)
    return Training(trainer.global_step, module.interrupted, progress.seconds, module.tokens, progress.speed)


def strategy_of(module: DistillModule) -> Any:
    """What Lightning's Trainer takes as its strategy."""
    kind, world = module.settings.strategy, processes.world()
    if kind == "fsdp2":
        return Sharded(world)
    if kind == "ddp":
        # DDP waits for all gradients: without a loss on logits the head has none, nor has a loss of weight 0, nor a
        # tower that had nothing to read
        losses, towers = module.objective.losses.values(), towers_of(module.student)
        idle = bool(module.objective.scheduled or towers)
        idle = idle or not any(isinstance(loss, LogitsLoss) for loss in losses)
        return DDPStrategy(
            find_unused_parameters=idle, gradient_as_bucket_view=True, timeout=processes.PATIENCE
        )
    if kind == "deepspeed_zero2":
        return DeepSpeedStrategy(stage=2, config=_zero2(module))
    return "auto"


def _zero2(module: DistillModule) -> dict[str, Any]:
    """DeepSpeed's own words; batch sizes and clipping are Lightning's to fill in."""
    return {
        "zero_optimization": {"stage": 2, "overlap_comm": True, "contiguous_gradients": True},
        "zero_allow_untested_optimizer": True,
        "train_micro_batch_size_per_gpu": 1,  # read by nobody: batches come from Razor's loader
    }
