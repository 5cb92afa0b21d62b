"""The packed folder: the student's logits bit for bit, the promised bytes, and no trust in damaged files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from razor.errors import RazorError
from razor.export import packed as packed_module
from razor.export.packed import CARD, CONFIG, WEIGHTS, load_packed, packed_bytes, save_packed
from razor.models import QuantCache, RandomModel
from razor.models.attention import SUFFIX
from razor.quant import measure
from razor.storage import file_digest

MODELS = ["tiny_qwen3", "tiny_llama"]  # tied, untied
QUANTS = ["w16", "w4", "mixed_2p79", "mixed_1p88", "w1p58"]
BARE = ["quant.activations=none", "quant.kv_cache=none"]


def logits(model: Any, length: int = 40) -> torch.Tensor:
    tokens = torch.arange(3, 3 + 2 * length).reshape(2, length) % 256
    with torch.no_grad():
        return model.eval()(input_ids=tokens, use_cache=False).logits


def moved(student: Any) -> Any:
    """The student as after some training: latents anywhere, not where rounding left them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return student


@pytest.fixture
def folder(tiny_student: Callable[..., Any], tmp_path: Path) -> Path:
    student, plan, tokenizer, _ = tiny_student()
    save_packed(student, plan, tokenizer, torch.bfloat16, tmp_path / "packed")
    return tmp_path / "packed"


@pytest.mark.parametrize("overrides", [[], BARE, BARE[1:]], ids=["a8_kv8", "bare", "a8"])
@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("model", MODELS)
def test_same_logits_after_a_reload(
    tiny_student: Callable[..., Any], tmp_path: Path, model: str, quant: str, overrides: list[str]
) -> None:
    student, plan, tokenizer, teacher = tiny_student(quant, model, *overrides)
    save_packed(moved(student), plan, tokenizer, torch.bfloat16, tmp_path / "packed")
    expected = logits(student)
    for hold in ("decoded", "packed"):
        reloaded, _ = load_packed(tmp_path / "packed", hold)
        assert torch.equal(logits(reloaded), expected)
    assert not torch.equal(logits(teacher), expected)
    assert not any(parameter.requires_grad for parameter in reloaded.parameters())


@pytest.mark.parametrize("model", MODELS)
def test_generates_as_the_student_does(tiny_student: Callable[..., Any], tmp_path: Path, model: str) -> None:
    student, plan, tokenizer, _ = tiny_student("w4", model)
    save_packed(student, plan, tokenizer, torch.bfloat16, tmp_path / "packed")
    reloaded, words = load_packed(tmp_path / "packed")
    prompt = words("Once upon a time", return_tensors="pt")
    made = [m.eval().generate(**prompt, max_new_tokens=12, do_sample=False) for m in (student, reloaded)]
    assert torch.equal(*made)
    assert reloaded.config._attn_implementation == "sdpa" + SUFFIX
    asked = {"max_new_tokens": 2, "return_dict_in_generate": True}
    assert isinstance(reloaded.generate(**prompt, **asked).past_key_values, QuantCache)
    assert {type(layer.self_attn.kv_format).__name__ for layer in reloaded.model.layers} == {"Integer"}
    assert reloaded.generation_config.eos_token_id == tokenizer.eos_token_id
    assert words.chat_template == tokenizer.chat_template
    assert words("grüß dich").input_ids == tokenizer("grüß dich").input_ids


def test_keys_and_values_are_rounded_after_a_reload(tiny_student: Callable[..., Any], tmp_path: Path) -> None:
    made = {}
    for name, overrides in {"int8": [], "none": ["quant.kv_cache=none"]}.items():
        student, plan, tokenizer, _ = tiny_student("w4", "tiny_llama", *overrides)
        save_packed(student, plan, tokenizer, torch.bfloat16, tmp_path / name)
        made[name] = logits(load_packed(tmp_path / name)[0])
    assert not torch.equal(made["int8"], made["none"])


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("tied", [True, False])
def test_bytes_are_those_that_were_promised(quant: str, tied: bool, tmp_path: Path) -> None:
    from razor import cli
    from razor.models import make_student

    architecture = {
        "model_type": "llama",
        "vocab_size": 2000,
        "hidden_size": 320,
        "intermediate_size": 960,
        "num_hidden_layers": 4,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
        "tie_word_embeddings": tied,
    }
    source = RandomModel("larger", architecture)
    config = cli.composed(
        "size", ["model=tiny_llama", "model.group=64", "model.kv_group=64", f"quant={quant}"]
    )
    plan = cli.build(config.quant).plan(source.skeleton())
    student = make_student(source.load(torch.bfloat16), plan, torch.bfloat16)
    save_packed(student, plan, source.tokenizer(), torch.bfloat16, tmp_path / "packed")
    content = (tmp_path / "packed" / WEIGHTS).read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    promised = measure(source.skeleton(), plan).total
    assert len(content) - header == promised.bytes_disk
    assert len(content) - header == pytest.approx(promised.bits / 8, rel=0.02)
    assert len(content) == packed_bytes(tmp_path / "packed")
    assert len(content) == pytest.approx(promised.bits / 8, rel=0.03)  # with names and shapes


def test_a_tied_weight_is_stored_once(tiny_student: Callable[..., Any], tmp_path: Path) -> None:
    student, plan, tokenizer, _ = tiny_student("w4", "tiny_qwen3")
    save_packed(student, plan, tokenizer, torch.bfloat16, tmp_path / "packed")
    names = load_file(tmp_path / "packed" / WEIGHTS)
    assert [name for name in names if "embed_tokens" in name] and not [n for n in names if "lm_head" in n]
    reloaded, _ = load_packed(tmp_path / "packed")
    assert reloaded.lm_head.coded is reloaded.model.embed_tokens.coded


def test_no_pickle_no_code_and_readable_by_others(folder: Path) -> None:
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".jinja"}
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors and vouch for them, as somebody might who edits a file by hand."""
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    vouch(folder, WEIGHTS)


def vouch(folder: Path, name: str) -> None:
    edit(folder, lambda card: card["sha256"].update({name: file_digest(folder / name)}))


def edit(folder: Path, change: Callable[[dict[str, Any]], object], name: str = CARD) -> None:
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))
    if name != CARD:
        vouch(folder, name)


def quantization(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit(folder, lambda config: change(config["quantization_config"]), CONFIG)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped bit": (lambda f: flip(f / WEIGHTS, -100), "damaged"),
    "flipped bit in the header": (lambda f: flip(f / WEIGHTS, 20), "damaged"),
    "truncated": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-1]), "damaged"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "cannot be read"),
    "half a card": (lambda f: (f / CARD).write_text((f / CARD).read_text()[:99]), "no packed model"),
    "card of something else": (lambda f: (f / CARD).write_text("[]"), "no packed model"),
    "card without checksum": (lambda f: edit(f, lambda card: card.pop("sha256")), "sha256"),
    "checksums of something else": (lambda f: edit(f, lambda card: card.update(sha256=[])), "sha256"),
    "newer": (lambda f: edit(f, lambda card: card.update(version=99)), "99"),
    "older": (lambda f: edit(f, lambda card: card.update(version=1)), "pack it again"),
    "no config": (lambda f: (f / CONFIG).unlink(), "no packed model"),
    "config of something else": (lambda f: edit(f, lambda c: c.pop("quantization_config"), CONFIG), CONFIG),
    "another config": (lambda f: (f / CONFIG).write_text((f / CONFIG).read_text() + " "), "checksum"),
    "config without plan": (lambda f: quantization(f, lambda q: q.pop("plan")), "plan"),
    "half a plan": (lambda f: quantization(f, lambda q: q["plan"].pop("modules")), "modules"),
    "unknown dtype": (lambda f: quantization(f, lambda q: q.update(compute_dtype="int3")), "int3"),
    "newer config": (lambda f: quantization(f, lambda q: q.update(version="9a")), "9a"),
    "missing codes": (
        lambda f: rewrite(f, lambda s: s.pop("model.layers.1.mlp.up_proj.coded.high_codes")),
        "up_proj",
    ),
    "missing norm": (lambda f: rewrite(f, lambda s: s.pop("model.norm.weight")), "model.norm.weight"),
    "unknown tensor": (lambda f: rewrite(f, lambda s: s.update(extra=torch.zeros(2))), "extra"),
    "wrong shape": (
        lambda f: rewrite(f, lambda s: s.update({"model.norm.weight": torch.zeros(2)})),
        "model.norm",
    ),
    "wrong type": (
        lambda f: rewrite(
            f,
            lambda s: s.update(
                {n: s[n].to(torch.bfloat16) for n in ("model.layers.0.mlp.up_proj.coded.low_scales",)}
            ),
        ),
        "low_scales",
    ),
    "a width in words": (lambda f: edit(f, lambda c: c.update(hidden_size="wide"), CONFIG), "hidden_size"),
    "half a generation config": (
        lambda f: [(f / "generation_config.json").write_text("{"), vouch(f, "generation_config.json")],
        "generation_config.json",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_told_in_one_line(folder: Path, case: str) -> None:
    damage, expected = DAMAGE[case]
    damage(folder)
    with pytest.raises(RazorError) as error:
        load_packed(folder)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_a_failed_save_leaves_the_old_folder(
    folder: Path, tiny_student: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    student, plan, tokenizer, _ = tiny_student("w4")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(packed_module, "file_digest", full)
        with pytest.raises(RazorError, match="No space left"):
            save_packed(student, plan, tokenizer, torch.bfloat16, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["packed"]
    save_packed(student, plan, tokenizer, torch.bfloat16, folder)  # and a good one replaces it
    assert torch.equal(logits(load_packed(folder)[0]), logits(student))
    assert [path.name for path in folder.parent.iterdir()] == ["packed"]
