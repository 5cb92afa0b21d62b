"""The estimate of a run against tensors that are really there, and against arithmetic done by hand."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from razor import cli
from razor.cli.estimate import case_from
from razor.distill import Needs
from razor.models import make_student, record
from razor.quant import FakeQuantizer
from razor.train.estimate.case import Case
from razor.train.estimate.facts import facts_of
from razor.train.estimate.losses import loss_bytes, recorded_bytes
from razor.train.estimate.memory import BUCKET, HOLES, host_bytes, lasting_bytes, memory
from razor.train.estimate.needs import GPU_PROCESS, Rate, estimate, helps, memory_of, process_bytes
from razor.train.estimate.speed import flops_per_token, matrix_speed
from razor.train.estimate.trial import random_batch, trial

ROOT = Path(__file__).resolve().parents[2]
CONF = cli.conf_dir()
RATE = Rate(1e12, "as given")
BASE = 500_000_000


@functools.cache
def case(*words: str) -> Case:
    return case_from(cli.composed("estimate", ["model=tiny_llama", "trainer=cpu", "evals=none", *words]))[0]


def settings(*words: str) -> Any:
    return case_from(cli.composed("estimate", ["model=tiny_llama", "trainer=cpu", *words]))[1]


def nbytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def really_saved(of: Case, checkpointing: bool = False) -> int:
    """Bytes that autograd holds after a recorded pass of a real student, beside weights in any form."""
    student = make_student(of.model.load(of.dtype), of.plan, of.dtype)
    if checkpointing:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        record(student, random_batch(of.rows, of.length, 272), Needs())
    weights = [*student.parameters(), *student.buffers()]
    weights += [q._remembered[2] for q in student.modules() if isinstance(q, FakeQuantizer) and q._remembered]
    elsewhere = {t.untyped_storage().data_ptr() for t in weights}
    return nbytes(t for t in kept if t.untyped_storage().data_ptr() not in elsewhere)


WAYS = [
    ("model=tiny_llama",),
    ("model=tiny_qwen3", "data.rows_per_batch=3", "data.sequence_length=96"),
    ("model=tiny_llama", "trainer.compute_dtype=float32"),
    ("model=tiny_llama", "quant=w1p58_lsq"),
    ("model=tiny_llama", "quant=w16"),
]


@pytest.mark.parametrize("words", WAYS, ids=" ".join)
def test_what_autograd_keeps_is_known_without_numbers(words: tuple[str, ...]) -> None:
    of = case(*words)
    found = facts_of(of).saved
    assert found.exact and found.total == really_saved(of)
    assert found.layer * 4 <= found.total <= found.layer * 4 * 1.1  # four equal layers, and little beside


@pytest.mark.parametrize("words", WAYS[:3], ids=" ".join)
def test_and_under_gradient_checkpointing(words: tuple[str, ...]) -> None:
    of = replace(case(*words), checkpointing=True)
    found = facts_of(of).saved
    assert found.total == really_saved(of, checkpointing=True)
    assert found.total < found.layer < facts_of(replace(of, checkpointing=False)).saved.total


def test_the_formula_of_a_layer_holds() -> None:
    """The docstring's formula, for a llama in bf16."""
    of = case("data.rows_per_batch=1", "data.sequence_length=64")
    width, inner, heads, kv, head_dim, e = 64, 128, 4, 2, 16, 2
    norms = 2 * (4 * width + 4 + e * width)  # 4: the inverse root, a number a token
    attention = e * (2 * heads + 2 * kv) * head_dim + 4 * heads
    linears = e * (2 * width + heads * head_dim + inner)
    rotary = 2 * e * head_dim  # cosines and sines, kept once, by the first layer
    assert facts_of(of).saved.layer == 64 * (norms + attention + linears + e * 3 * inner + rotary)


def test_on_a_gpu_masks_and_repeated_keys_are_kept() -> None:
    of = case("data.rows_per_batch=2", "data.sequence_length=64")
    here, there = facts_of(of).saved, facts_of(replace(of, device="cuda")).saved
    repeated = 2 * 2 * (4 - 2) * 16 * 128  # keys and values of two more heads, bf16
    assert there.layer - here.layer == repeated + 2 * 2 * 64 * 64


@pytest.mark.parametrize("words", WAYS, ids=" ".join)
def test_what_lasts_is_what_is_there_after_a_step(words: tuple[str, ...]) -> None:
    of = case(*words)
    facts, module = facts_of(of), trial(of, settings(*words), 1)
    optimizer = module.configure_optimizers()["optimizer"]
    loss, _ = module.loss(random_batch(of.rows, of.length, 272))
    loss.backward()
    optimizer.step()
    module.loss(random_batch(of.rows, of.length, 272))  # quantizes what the optimizer changed
    parameters = list(module.parameters())
    assert module.teacher is not None
    remembered = [
        q._remembered[2] for q in module.modules() if isinstance(q, FakeQuantizer) and q._remembered
    ]
    there = {
        "teacher": nbytes(module.teacher.parameters()),
        "latents": nbytes(parameters),
        "quantized": nbytes(remembered),
        "gradients": nbytes([p.grad for p in parameters]),
        "optimizer": nbytes([s for p in parameters for k, s in optimizer.state[p].items() if k != "step"]),
    }
    told = lasting_bytes(of, facts)
    learned = of.item * facts.learned  # scales that are learned are no quantized weights
    assert told == there | {"quantized": there["quantized"] + learned}
    assert facts.student.parameters + facts.learned == sum(p.numel() for p in parameters)


def test_quantized_weights_are_counted_once_and_16_bits_not_at_all() -> None:
    assert facts_of(case("model=tiny_qwen3", "quant=w4")).quantized == 272 * 64 + 4 * 64 * (3 * 64 + 3 * 128)
    assert facts_of(case("quant=w16")).quantized == 0


@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 4096), (2, 40000)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_the_loss_takes(rows: int, vocabulary: int, dtype: str) -> None:
    """Every tensor of the loss on logits, by the moment it comes and goes."""
    of = case(
        f"model.architecture.vocab_size={vocabulary}",
        f"data.rows_per_batch={rows}",
        "data.sequence_length=256",
        f"trainer.compute_dtype={dtype}",
        "distill=eakld",
    )
    # a student so near its teacher that what rounding lost is asked for
    hidden, weights = ([torch.randn(n, 64, dtype=of.dtype)] * 2 for n in (of.tokens, vocabulary))
    hidden, weights = ([given[0].clone(), given[1]] for given in (hidden, weights))
    peak = peak_of_loss(hidden, weights, of)
    told, kept = loss_bytes(of, facts_of(of))
    assert 0.87 * told <= peak <= 1.04 * told
    assert kept == of.item * 64 * (vocabulary + of.tokens)


def peak_of_loss(hidden: list[torch.Tensor], weights: list[torch.Tensor], of: Case) -> int:
    from razor.distill import Trace

    watch = Living()
    hidden[0].requires_grad_()
    weights[0].requires_grad_()
    batch = random_batch(of.rows, of.length, len(weights[0]))
    student, teacher = (
        Trace(h.view(of.rows, of.length, -1), w) for h, w in zip(hidden, weights, strict=True)
    )
    with watch:
        seen = of.objective.observe(teacher, batch)
        of.objective(student, teacher, batch, seen)
    return watch.peak


class Living(torch.utils._python_dispatch.TorchDispatchMode):
    """Bytes of the storages that operations made and that still live, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {
            t.untyped_storage()._cdata for t in torch.utils._pytree.tree_leaves(args) if torch.is_tensor(t)
        }
        for tensor in torch.utils._pytree.tree_leaves(out):
            if torch.is_tensor(tensor) and (key := tensor.untyped_storage()._cdata) not in self.known:
                if key in given:  # a view of something from before
                    continue
                size = tensor.untyped_storage().nbytes()
                self.known[key] = weakref.finalize(tensor.untyped_storage(), self._gone, key, size)
                self.now += size
                self.peak = max(self.peak, self.now)
        return out

    def _gone(self, key: int, size: int) -> None:
        self.known.pop(key)
        self.now -= size


def test_what_losses_on_layers_hold() -> None:
    base, token = case("data.rows_per_batch=1", "data.sequence_length=64"), 64 * 64
    afd = recorded_bytes(base, facts_of(base))
    assert afd == 3 * (2 * token + 2 * token + 4 * token)  # both states in bf16, their difference in fp32
    single = replace(base, dtype=torch.float32)
    assert recorded_bytes(single, facts_of(single)) == 3 * 8 * token  # autograd keeps the student's anyway
    attention = case("data.rows_per_batch=1", "data.sequence_length=64", "distill=eakld_afd_attn")
    assert recorded_bytes(attention, facts_of(attention)) == afd + 2 * 64 * 128 + 3 * 8 * 2**20
    none = case("distill=kld")
    assert recorded_bytes(none, facts_of(none)) == 0


def test_strategies_share_what_they_say() -> None:
    of = case("device=cuda", "processes=8", "strategy=ddp")
    facts = facts_of(of)
    n = facts.student.parameters
    assert n == 272 * 64 * 2 + 64 + 4 * (64 * (3 * 64 + 3 * 128) + 2 * 64)
    alone = {"teacher": 2 * n, "latents": 4 * n, "quantized": 2 * n, "gradients": 4 * n, "optimizer": 8 * n}
    assert lasting_bytes(of, facts) == alone
    zero = lasting_bytes(replace(of, strategy="deepspeed_zero2"), facts)
    buckets = 8 * min(n, BUCKET)
    assert zero == alone | {
        "latents": 4 * n + n // 2,
        "gradients": n // 2,
        "optimizer": n,
        "buckets": buckets,
    }
    outside, layer = 272 * 64 * 2 + 64, 64 * (3 * 64 + 3 * 128) + 2 * 64
    cut = lasting_bytes(replace(of, strategy="fsdp2", shard_teacher=True), facts)
    assert cut == alone | {
        "latents": n // 2,
        "gradients": n // 2,
        "optimizer": n,
        "gathered": 8 * outside + 12 * layer,
        "teacher": 2 * (outside + 4 * layer // 8 + 2 * layer),
    }
    whole = lasting_bytes(replace(of, strategy="fsdp2", shard_teacher=False, checkpointing=True), facts)
    assert whole["teacher"] == 2 * n and whole["quantized"] == 2 * (outside + layer)
    cached = lasting_bytes(replace(of, cached="sampled", strategy="single", processes=1), facts)
    assert "teacher" not in cached


def test_the_moments_of_a_run() -> None:
    of = case()
    facts = facts_of(of)
    held = memory(of, facts, BASE)
    assert held.moment == "forward" and sum(held.parts.values()) == held.peak
    lasting = sum(lasting_bytes(of, facts).values())
    live = lasting + facts.saved.total + recorded_bytes(of, facts) + loss_bytes(of, facts)[0]
    assert held.peak == BASE + live + int(HOLES * live)
    moments = {name: sum(parts.values()) for name, parts in held.moments.items()}
    assert moments["backward begins"] < moments["forward"]
    more = memory(replace(of, accumulate=2), facts, BASE).moments[
        "backward begins"
    ]  # gradients of the first half
    assert more["gradients"] == held.moments["backward begins"]["gradients"] + 4 * facts.student.parameters
    scored = memory(replace(of, scored=32), facts, BASE).moments["scoring"]
    assert scored["logits"] == 32 * 120 * 2 * 272 and "gradients" not in scored
    gathered = memory(replace(of, strategy="fsdp2", processes=2, device="cuda"), facts, BASE).moments[
        "scoring"
    ]
    n = facts.student.parameters
    assert (gathered["teacher"], gathered["gathered"], gathered["quantized"]) == (2 * n, 4 * n, 2 * n)


def test_a_cached_teacher_and_offloading_save_what_they_should() -> None:
    here, away = (
        case("data.sequence_length=512"),
        case("teacher=cached", "distill=kld", "data.sequence_length=512"),
    )
    there = [estimate(of, RATE, 10**12, BASE) for of in (here, away)]
    assert there[1].memory < there[0].memory - there[0].facts.teacher.parameters * 2
    assert "teacher" not in there[1].held.parts and "teacher" in there[1].held.moments["scoring"]
    gpu = case("device=cuda", "trainer.offload_activations=true")
    assert estimate(gpu, RATE, 10**12).held.moments["forward"]["activations"] == facts_of(gpu).saved.layer


def test_another_teacher_is_counted_as_what_it_is() -> None:
    of = case("teacher=tiny_qwen3")
    facts = facts_of(of)
    assert facts.teacher.parameters != facts.student.parameters
    assert lasting_bytes(of, facts)["teacher"] == 2 * facts.teacher.parameters
    more = flops_per_token(of, facts) - flops_per_token(replace(of, cached="topk"), facts)
    head, layers = 272 * 64, 4 * 64 * (3 * 64 + 3 * 128)
    assert more == 2 * (head + layers) + 2 * 4 * 64 * of.length


def test_operations_of_a_token() -> None:
    """SmolLM2-135M: 30 layers of 3.54 million, a head of 49152 x 576, attention 576 wide."""
    of = case("model=smollm2_135m", "data.sequence_length=512")
    layer, head = 576 * (576 + 2 * 192 + 576) + 3 * 576 * 1536, 49152 * 576
    attention = 2 * 30 * 576 * 512
    facts = facts_of(of)
    assert facts.student.matrices == 30 * layer and facts.student.head == head
    assert flops_per_token(of, facts) == 8 * (30 * layer + head) + 4 * attention
    again = flops_per_token(replace(of, checkpointing=True), facts)
    assert again == 10 * 30 * layer + 8 * head + 5 * attention


def test_time_follows_from_the_rate() -> None:
    of = case("device=cuda", "strategy=ddp", "processes=4", "trainer.max_steps=10")
    found = estimate(of, RATE)
    assert (
        of.total_tokens == 10 * 512
        and case("processes=4", "strategy=ddp", "trainer.accumulate=8").accumulate == 8
    )
    assert found.tokens_per_second == pytest.approx(4 * 1e12 / flops_per_token(of, found.facts))
    assert found.seconds == pytest.approx(of.total_tokens / (found.tokens_per_second or 0))


def test_disk_is_checkpoints_and_the_packed_model() -> None:
    found = estimate(case(), RATE, 10**12, BASE)
    size = found.facts.student.parameters
    assert found.checkpoint == 12 * size
    assert found.disk == 3 * found.checkpoint + 2 * found.facts.packed and 0 < found.facts.packed < size


def test_machines_with_gpus_need_memory_too() -> None:
    of = case("device=cuda", "strategy=fsdp2", "processes=16", "nodes=2")
    facts = facts_of(of)
    n = facts.student.parameters
    assert host_bytes(of, facts) == 8 * 6 * n + 2 * n
    assert host_bytes(replace(of, device="cpu"), facts) == 0
    assert (
        "loading" in memory(of, facts, 0).moments and not memory(of, facts, 0).moments["loading"]["process"]
    )


def test_the_process_of_this_test_is_what_the_system_says() -> None:
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    assert process_bytes("cpu") == pytest.approx(resident + 60_000_000, rel=0.05)
    assert process_bytes("cuda") == GPU_PROCESS


def test_processes_on_a_machine_share_its_memory() -> None:
    one, two = memory_of(case()), memory_of(case("strategy=ddp", "processes=4", "nodes=2"))
    assert one is not None and two == one // 2


def test_a_run_that_does_not_fit_is_told_what_would_help() -> None:
    fits = estimate(case(), RATE, 10**12, BASE)
    assert fits.fits and fits.warning() is None
    small = estimate(case("data.sequence_length=512"), RATE, BASE + 12_000_000, BASE)
    assert small.fits is False
    found = dict(helps(small))
    assert set(found) >= {"trainer.gradient_checkpointing=true", "teacher=cached distill=kld"}
    assert all(other.memory < small.memory for other in found.values())
    text = small.warning()
    assert text is not None and "\n" not in text and "does not fit" in text
    one = case("data.sequence_length=512", "trainer.gradient_checkpointing=true")
    assert found["trainer.gradient_checkpointing=true"].memory == estimate(one, RATE, 1, BASE).memory


def test_more_gpus_are_proposed_where_one_is_too_few() -> None:
    big = estimate(case("model=qwen3_8b", "device=cuda"), RATE, 80 * 10**9)
    proposed = [words for words in dict(helps(big)) if words.startswith("trainer=fsdp2 processes=")]
    assert len(proposed) == 1 and dict(helps(big))[proposed[0]].fits


@pytest.mark.parametrize("quant", sorted(p.stem for p in (CONF / "quant").glob("*.yaml") if p.stem != "plan"))
def test_every_recipe_has_an_estimate(quant: str, tmp_path: Path) -> None:
    words = [f"quant={quant}"]
    if quant == "recipe":
        from razor.recipe import Recipe

        made = cli.build(cli.composed("train", ["model=tiny_llama"]).quant)
        Recipe("r", made).save(tmp_path / "recipe.yaml")
        words.append(f"recipe={tmp_path / 'recipe.yaml'}")
    found = facts_of(case(*words)).saved
    assert found.exact and found.total > 0


@pytest.mark.parametrize(
    "distill", sorted(p.stem for p in (CONF / "distill").glob("*.yaml") if p.stem != "recipe")
)
def test_every_objective_has_an_estimate(distill: str) -> None:
    of = case(
        f"distill={distill}", *(["model=tiny_omni", "data=digits_and_sounds"] if distill == "towers" else [])
    )
    found = estimate(of, RATE, 10**12, BASE)
    assert ("teacher" in found.held.parts) and of.taught == (distill != "ce")


def test_a_model_that_looks_at_its_numbers_gets_a_rule_of_thumb(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise NotImplementedError("no numbers")

    exact = facts_of(case()).saved
    monkeypatch.setattr("razor.train.estimate.saved._pass", fails)
    rough = facts_of(case()).saved
    assert not rough.exact and exact.total / 3 < rough.total < exact.total * 3
    again = facts_of(replace(case(), checkpointing=True)).saved
    assert again.total < rough.total and again.layer == rough.layer


def test_matrix_speed_is_a_speed() -> None:
    assert 1e7 < matrix_speed(torch.device("cpu"), size=128) < 1e16
