"""The peer's side of `distill_step.py`: teacher, quantized student, EAKLD + AFD, AdamW. Runs in its environment.

What was chosen, so that it is its best way to do this step:

* Configuration (`configuration.py`): W2.79-A8-KV8 as its recipes for small models have it: every second row int4
  and the others ternary, embedding and head int4, activations and KV int8, all in groups of 64 (its recipes for
  Qwen3 take 256, of which SmolLM2's width of 576 is no multiple); losses 0.1 task + 2 EAKLD (k = 16) + 0.1 AFD, as
  for Qwen3 below 4 bits.
* The step is that of its own trainer: a new quantizing KV cache for each pass of the student, hidden states of
  both models where AFD is wanted, and the student's cross entropy as Transformers computes it, because
  `compute_loss` asks for it.
* Left out what its trainer does needlessly: the teacher gets no labels, so it computes no cross entropy, and no
  KV cache.
* SDPA attention, no gradient checkpointing (with it the KV quantization is lost), fused AdamW, gradients set to
  None: as on our side.
* Latents in fp32 that compute in bf16: both models run under torch's autocast, as Hugging Face's trainer, of which
  its own is one, has it with `bf16=True`.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

import torch
from edgerazor import EdgeRazor
from transformers import AutoModelForCausalLM, LlamaConfig

from peer.configuration import configuration
from peer.products import same_products
from peer.sides import serve, versions


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    """What the parent may ask for."""
    dtype, teacher_dtype = getattr(torch, job["dtype"]), getattr(torch, job["teacher"])
    config = LlamaConfig(**job["architecture"])
    torch.manual_seed(0)
    teacher = AutoModelForCausalLM.from_config(config, dtype=teacher_dtype).eval().requires_grad_(False)
    peer = EdgeRazor(config=configuration(job["features"]))
    torch.manual_seed(0)  # the student is the teacher's copy
    student = peer.quantize(AutoModelForCausalLM.from_config(config, dtype=dtype).train())
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(0, config.vocab_size, (job["rows"], job["length"]))
    mixed = job["dtype"] != job["compute"]

    def step() -> dict[str, Any]:
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext():
            own = student(
                input_ids=ids,
                labels=ids,
                output_hidden_states=job["features"],
                past_key_values=peer.create_kv_cache(model_config=student.config),
            )
            with torch.no_grad():
                other = teacher(input_ids=ids, output_hidden_states=job["features"], use_cache=False)
            loss, _ = peer.compute_loss(own, other, ids)
        loss.backward()
        optimizer.step()
        return {"seconds": time.perf_counter() - started, "loss": float(loss)}

    return {"step": step, "versions": lambda: versions("torch", "transformers", "edgerazor")}


if __name__ == "__main__":
    same_products()
    serve(prepare)
