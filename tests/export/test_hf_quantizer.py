"""Packed folders in Transformers' own hands: from_pretrained, pipeline, generate, save_pretrained."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import razor
from razor.errors import RazorError
from razor.export.packed import CARD, WEIGHTS, load_packed, save_packed
from razor.models import QuantCache
from razor.quant import CodedWeight
from tests.export.test_packed import logits, moved

FAMILIES = ["tiny_qwen3", "tiny_llama"]  # tied, untied


@pytest.fixture(params=FAMILIES)
def saved(request: Any, tiny_student: Callable[..., Any], tmp_path: Path) -> tuple[Any, Path]:
    student, plan, tokenizer, _ = tiny_student("mixed_2p79", request.param)
    save_packed(moved(student), plan, tokenizer, torch.bfloat16, tmp_path / "packed")
    return student.eval(), tmp_path / "packed"


def test_from_pretrained_has_the_students_logits(saved: tuple[Any, Path]) -> None:
    student, folder = saved
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(model), logits(student))
    assert model.dtype == torch.bfloat16 and not any(p.requires_grad for p in model.parameters())
    small = AutoModelForCausalLM.from_pretrained(folder, quantization_config=razor.RazorConfig(hold="packed"))
    assert torch.equal(logits(small), logits(student))
    assert all(m._decoded is None for m in small.modules() if isinstance(m, CodedWeight))
    assert any(m._decoded is not None for m in model.modules() if isinstance(m, CodedWeight))


def test_generate_keeps_codes_of_keys_and_values(saved: tuple[Any, Path]) -> None:
    student, folder = saved
    model, words = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = words("Once upon a time", return_tensors="pt")
    asked = {"max_new_tokens": 12, "do_sample": False, "return_dict_in_generate": True}
    made = [m.generate(**prompt, **asked) for m in (student, model)]
    assert torch.equal(made[0].sequences, made[1].sequences)
    assert isinstance(made[1].past_key_values, QuantCache)


def test_another_dtype_is_not_followed(saved: tuple[Any, Path], caplog: pytest.LogCaptureFixture) -> None:
    student, folder = saved
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert model.dtype == torch.bfloat16 and torch.equal(logits(model), logits(student))
    assert "computes in torch.bfloat16" in caplog.text


def test_saves_again_and_in_shards(saved: tuple[Any, Path], tmp_path: Path) -> None:
    student, folder = saved
    model = AutoModelForCausalLM.from_pretrained(folder)
    for name, options in {"whole": {}, "shards": {"max_shard_size": "40KB"}}.items():
        model.save_pretrained(tmp_path / name, **options)
        AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / name)
        for again in (AutoModelForCausalLM.from_pretrained(tmp_path / name), load_packed(tmp_path / name)[0]):
            assert torch.equal(logits(again), logits(student))
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert load_file(tmp_path / "whole" / WEIGHTS).keys() == load_file(folder / WEIGHTS).keys()
    config = json.loads((tmp_path / "whole" / "config.json").read_text())["quantization_config"]
    assert config == json.loads((folder / "config.json").read_text())["quantization_config"]


def test_small_in_memory_before_weights_are_loaded(saved: tuple[Any, Path]) -> None:
    """Nothing of the size of the 16-bit model is ever there: layers are swapped on the meta device."""
    _, folder = saved
    seen: list[torch.device] = []
    original = razor.quant.swap_in_coded

    def watched(model: Any, *rest: Any) -> None:
        seen.extend(p.device for p in model.parameters())
        original(model, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("razor.quant.swap_in_coded", watched)
        AutoModelForCausalLM.from_pretrained(folder)
    assert seen and {device.type for device in seen} == {"meta"}


DAMAGE: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "a missing tensor": (lambda s: s.pop("model.norm.weight"), "model.norm.weight"),
    "missing codes": (lambda s: s.pop("model.layers.0.mlp.up_proj.coded.low_codes"), "low_codes"),
    "an unknown tensor": (lambda s: s.update(more=torch.zeros(1)), "more"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_no_random_layer_is_ever_loaded(saved: tuple[Any, Path], case: str) -> None:
    """Where Transformers would fill in random numbers and warn."""
    _, folder = saved
    change, expected = DAMAGE[case]
    (folder / CARD).unlink()  # a folder without checksums, as save_pretrained leaves it
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(RazorError, match=expected):
        AutoModelForCausalLM.from_pretrained(folder)


def test_from_pretrained_looks_at_checksums(saved: tuple[Any, Path]) -> None:
    _, folder = saved
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-100] ^= 4
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(RazorError, match="checksum"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_pipeline(saved: tuple[Any, Path]) -> None:
    _, folder = saved
    talk = pipeline("text-generation", model=str(folder))
    (made,) = talk("Once upon", max_new_tokens=5, do_sample=False)
    assert made["generated_text"].startswith("Once upon")


ORDERS = {
    "razor first": "import razor; from transformers import AutoModelForCausalLM, pipeline",
    "transformers first": "from transformers import AutoModelForCausalLM, pipeline; import razor",
}


@pytest.mark.parametrize("order", ORDERS)
def test_import_razor_is_all_it_takes(saved: tuple[Any, Path], order: str) -> None:
    _, folder = saved
    code = f"{ORDERS[order]}; print(type(AutoModelForCausalLM.from_pretrained({str(folder)!r}).lm_head).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=900)
    assert done.stdout.strip() == "CodedLinear", done.stderr


def test_a_version_that_is_not_read(saved: tuple[Any, Path]) -> None:
    with pytest.raises(RazorError, match="format 3"):
        razor.RazorConfig(version=3)


def test_held_in_the_kernel(saved: tuple[Any, Path], tmp_path: Path) -> None:
    """Four bits in memory: bit for bit at prompts, near it token by token, saved as it was."""
    student, folder = saved
    model = razor.load(folder, hold="int4")[0]
    held = [m for m in model.modules() if isinstance(m, CodedWeight) and m._int4 is not None]
    if not held:
        pytest.skip("the kernel of this processor keeps codes in a layout that is not known here")
    assert torch.equal(logits(model), logits(student))
    prompt = torch.arange(3, 23).repeat(2, 1)
    made = model.generate(input_ids=prompt, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    assert made.shape == (2, 26)
    with torch.no_grad():
        one = [m(input_ids=prompt[:1, :1], use_cache=False).logits.float() for m in (model, student)]
    assert (one[0] - one[1]).abs().max() < 0.05 * one[1].abs().max()
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "again")), logits(student))
    model.load_state_dict(model.state_dict())
    model.to(torch.device("cpu"))
    assert torch.equal(logits(model), logits(student)) and all(m._int4 is not None for m in held)


def test_other_codes_are_taken_in(saved: tuple[Any, Path]) -> None:
    _, folder = saved
    model = razor.load(folder, hold="int4")[0]
    before = logits(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    name = next(n for n in state if n.endswith("up_proj.coded.low_scales"))
    state[name] = state[name] * 2
    model.load_state_dict(state)
    assert not torch.equal(logits(model), before)


def test_an_unknown_way_to_hold_is_told_first(saved: tuple[Any, Path]) -> None:
    with pytest.raises(RazorError, match="Choices: decoded, packed, int4"):
        razor.load(saved[1], hold="int8")  # type: ignore[arg-type]
