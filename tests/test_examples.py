"""The examples of docs/recipe.md run as they stand, learn, and leave a model that loads."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import razor
from razor.cli import composed, model_source

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_example(script: Path, tmp_path: Path) -> None:
    lines = script.read_text().splitlines()
    assert len(lines) < 40 and max(map(len, lines)) <= 110
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(EXAMPLES.parents[1]), "CUDA_VISIBLE_DEVICES": ""},
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    losses = [float(value) for value in re.findall(r"\bloss['\"]?:? ['\"]?([\d.]+)", done.stdout)]
    assert len(losses) == 20 and sum(losses[-5:]) < 0.8 * sum(losses[:5])
    model, tokenizer = razor.load(tmp_path / "packed")
    ids = tokenizer("import", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=ids).logits.float()).all()
    saved = razor.Recipe.load(tmp_path / "packed" / "recipe.yaml")
    assert saved.to_dict() == razor.Recipe.load(EXAMPLES / "recipe.yaml").to_dict()


def test_the_trainer_divides_by_the_micro_batches(tmp_path: Path) -> None:
    """What `loss_is_scaled_for_ga = False` is for: two micro-batches give the mean of their gradients."""
    from transformers import Trainer, TrainingArguments

    assert "loss_is_scaled_for_ga = False" in (EXAMPLES / "transformers_trainer.py").read_text()
    model = model_source(composed("size", ["model=tiny_llama"])).load(torch.float32)
    distill = {"losses": {"task": {"kind": "CrossEntropy"}}, "weights": {"task": 1}}
    distiller = razor.Distiller({"name": "x", "distill": distill}, model)
    found: list[torch.Tensor] = []

    class Own(Trainer):
        loss_is_scaled_for_ga = False

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # type: ignore[no-untyped-def]
            return distiller(**inputs)[0]

    class Look(torch.optim.SGD):
        def step(self, closure=None):  # type: ignore[no-untyped-def]
            found.append(model.lm_head.weight.grad.clone())

    rows = torch.randint(0, 256, (4, 12), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row} for row in rows]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        max_grad_norm=0, report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    optimizer = Look(model.parameters(), lr=0.0)
    Own(model, arguments, train_dataset=data, optimizers=(optimizer, None)).train()
    model.zero_grad()
    distiller(input_ids=rows, labels=rows)[
        0
    ].backward()  # rows are of one length: one batch is the mean of two
    torch.testing.assert_close(found[0], model.lm_head.weight.grad, rtol=1e-4, atol=1e-7)
