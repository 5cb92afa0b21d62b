"""vLLM itself on exported folders, where RAZOR_VLLM_PYTHON names an interpreter that has it (docs/vllm.md).

vLLM takes gigabytes and pins another Transformers, so it cannot live beside Razor; it reads the folder and nothing
else of ours. Four-bit folders it computes in float16, as they say, and is held against the packed model in fp32:
closer to it than the student's own bf16 is.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from razor.export.compressed_tensors import CompressedTensors
from razor.export.dense import Dense
from razor.export.exporter import Exporter
from razor.export.gptq import GPTQ
from razor.export.loaded import TEXT, bare_model
from razor.models import RandomModel
from razor.quant import Float16, Format, Integer, RowMix, Ternary
from tests.export.hf_models import QWEN2, exported, packed_by, plan_of

PYTHON = os.environ.get("RAZOR_VLLM_PYTHON")
SCORE = """
import json, sys
from vllm import LLM, SamplingParams
def main():
    ids = json.loads(sys.argv[2])
    llm = LLM(sys.argv[1], max_model_len=128, enforce_eager=True, max_num_seqs=2, skip_tokenizer_init=True)
    options = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False)
    found = llm.generate([{"prompt_token_ids": ids}], options)[0].prompt_logprobs
    print("FOUND", json.dumps([place[token].logprob for place, token in zip(found[1:], ids[1:])]))
if __name__ == "__main__":
    main()
"""
CASES: dict[str, tuple[Exporter, Format, dict[str, Format]]] = {
    "gptq": (GPTQ(), RowMix(Integer(4, 64), Ternary(64), 0.5), {}),
    "gptq, rows": (GPTQ(), Integer(4, "row"), {}),
    "dense": (Dense(), Ternary(64), {}),
    "several schemes": (
        CompressedTensors(),
        Integer(4, 32),
        {
            "up_proj": Integer(4, 64),
            "gate_proj": Integer(4, 64),
            "down_proj": Ternary("row"),
            "o_proj": Float16(),
        },
    ),
}


def scored(folder: Path, ids: list[int]) -> torch.Tensor:
    """Log-probabilities that vLLM gives to each token after the first."""
    assert PYTHON is not None
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [PYTHON, "-c", SCORE, str(folder), json.dumps(ids)],
        env=os.environ | settings | {"VLLM_NO_USAGE_STATS": "1"},
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
    assert lines, done.stderr[-3000:]
    return torch.tensor(json.loads(lines[0].removeprefix("FOUND")))


@pytest.mark.slow
@pytest.mark.skipif(PYTHON is None, reason="RAZOR_VLLM_PYTHON names no interpreter that has vLLM")
@pytest.mark.parametrize("case", CASES)
def test_vllm_scores_as_the_packed_model_does(tmp_path: Path, case: str) -> None:
    exporter, linear, exceptions = CASES[case]
    source: Any = RandomModel("vllm", QWEN2 | {"hidden_size": 256, "intermediate_size": 512})
    compressed = packed_by(tmp_path, source, plan_of(source, linear, **exceptions))
    ids = compressed.tokenizer(TEXT).input_ids[:64]
    found = scored(exported(compressed, exporter), ids)
    gaps = {}
    for dtype in (torch.float32, torch.bfloat16):
        with torch.no_grad():
            told = bare_model(compressed, dtype)(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        gaps[dtype] = float((told[torch.arange(len(ids) - 1), ids[1:]] - found).abs().mean())
    if isinstance(exporter, Dense):  # which vLLM computes in bf16, as the folder says
        assert gaps[torch.float32] < 0.06
    else:
        assert gaps[torch.float32] < min(0.015, 0.5 * gaps[torch.bfloat16])
