"""Memory of one process, part by part, at every moment of a run.

N are the student's parameters, M the teacher's, e the bytes of the compute dtype (bf16 2, fp32 4), P the processes.
What lives from step to step, in bytes:

    part         single, ddp     fsdp2                       deepspeed_zero2
    teacher      e M             e M / P if it is cut        e M
    latents      4 N             4 N / P                     4 N + 4 N / P (DeepSpeed's own flat copy)
    optimizer    8 N             8 N / P                     8 N / P
    gradients    4 N             4 N / P                     4 N / P (ddp: in its buckets)
    quantized    e N             what is gathered (below)    e N
    buckets      -               -                           2 x 4 x at most 5e8
    gathered     -               below                       -

Gradients of a step live on while the next one runs forward (Lightning sets them to none just before its backward
pass), so a step's largest moment usually is the end of its forward pass, when everything is there.

**fsdp2.** Embedding, head and final norm stay gathered through a step: 4 R for R such parameters, and 4 R for their
gradients until they are scattered. Two layers of L parameters are gathered at a time, 4 L each, and gradients of
one wait, 4 L. Quantized weights are not remembered, but a layer's backward pass needs them: without gradient
checkpointing autograd keeps all, e N in every process; with it one layer's and those of R. A teacher that is cut
has two layers gathered, and all that is not a layer.

**activations** are asked of autograd (`saved`); **recorded** is what losses on layers hold, and the
**loss** makes logits in chunks (`losses`). The **layer** is what the backward pass of one makes: gradients
of all it kept, so about as much; under gradient checkpointing also what it kept.

**copies.** While a matrix is quantized there are an fp32 copy of it, divided by scales, and the new quantized
weights beside the old: (4 + e) times the largest.

**holes.** On a CPU the heap is never given back (`train.py` says why), and a tensor that finds no hole of its size
goes on top. In five shapes measured, the heap was 10 to 19 % larger than all that ever lived in it at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from razor.train.estimate.case import Case
from razor.train.estimate.facts import Facts
from razor.train.estimate.losses import loss_bytes, recorded_before, recorded_bytes

BUCKET = 500_000_000
"""Elements of each of DeepSpeed's two buckets for gradients (its default)."""

SCORED = 120
"""Tokens of answers in a row that benchmarks score, at most about (four answers of thirty)."""

HOLES = 0.13
"""Of a heap that is kept, see above: one number for all shapes."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one process.

    Attributes:
        moments: what is there, by part, at each moment of a run.
    """

    moments: dict[str, dict[str, int]]

    @property
    def moment(self) -> str:
        """The largest one."""
        return max(self.moments, key=lambda name: sum(self.moments[name].values()))

    @property
    def parts(self) -> dict[str, int]:
        """What is there then."""
        return {name: size for name, size in self.moments[self.moment].items() if size}

    @property
    def peak(self) -> int:
        """All of it."""
        return sum(self.parts.values())


def memory(case: Case, facts: Facts, fixed: int) -> Memory:
    """Memory of a process of a run.

    Args:
        case: the run.
        facts: what its models are like.
        fixed: bytes of a process before it has a model.
    """
    own, e = facts.student, case.item
    lasting = {"process": fixed} | lasting_bytes(case, facts)
    rest = {name: size for name, size in lasting.items() if name != "gradients"}
    activations = facts.saved.layer if case.offload and case.device == "cuda" else facts.saved.total
    loss, kept = loss_bytes(case, facts)
    held = {"activations": activations, "recorded": recorded_bytes(case, facts)}
    inside = facts.saved.layer * (2 if case.checkpointing else 1)
    # those of earlier micro-batches of the step, or the buckets of ddp
    earlier = lasting["gradients"] if case.accumulate > case.processes or case.strategy == "ddp" else 0
    moments = {
        "loading": {"process": fixed} | loading_bytes(case, facts),
        "teacher": lasting | {"recorded": recorded_before(case, facts), "loss": loss},
        "quantizing": lasting | {"copies": (4 + e) * own.largest},
        "forward": lasting | held | {"loss": loss},
        "backward begins": rest
        | held
        | {"gradients": earlier + 4 * facts.student.head, "loss": kept, "layer": inside},
        "backward ends": lasting | {"layer": inside, "embedding": (e + 4) * own.embedding},
        "optimizer": lasting,
        "scoring": scoring_bytes(case, facts, rest),
    }
    if case.strategy == "fsdp2" and case.device != "cuda":
        moments["checkpoint"] = lasting | {"gathered": 12 * own.parameters}
    if case.device == "cpu":
        moments = {
            name: parts | {"holes": int(HOLES * (sum(parts.values()) - fixed))}
            for name, parts in moments.items()
        }
    return Memory(moments)


def loading_bytes(case: Case, facts: Facts) -> dict[str, int]:
    """While the student is made, a copy of the model whose weights become fp32 one by one.

    On the GPU nothing but the result arrives; what the machine's own memory sees of it is said by `host_bytes`.
    """
    n, e = facts.student.parameters, case.item
    if case.device == "cuda":
        return {}
    other = 0 if case.teacher is case.model else e * facts.teacher.parameters
    return {"teacher": e * n + other, "latents": 4 * n, "copy": e * n}


def host_bytes(case: Case, facts: Facts) -> int:
    """Memory that a machine with GPUs needs itself: every process reads its models into it.

    A process holds teacher and latents, e M + 4 N, before they go to its GPU, and one copy more, e N, while it
    makes them; under fsdp2 process 0 gathers each checkpoint there, 12 N.
    """
    if case.device != "cuda":
        return 0
    n, e = facts.student.parameters, case.item
    each = e * facts.teacher.parameters * (case.cached is None) + 4 * n
    return max(case.per_node * each + e * n, 12 * n if case.strategy == "fsdp2" else 0)


def scoring_bytes(case: Case, facts: Facts, rest: dict[str, int]) -> dict[str, int]:
    """While the trained student is scored: no gradients, the optimizer still there, logits of a batch.

    Under fsdp2 each process gathers both models whole: it scores its own share of the rows.
    """
    e, n = case.item, facts.student.parameters + facts.learned
    parts = dict(rest) | {"teacher": e * facts.teacher.parameters}
    if case.strategy == "ddp":
        parts["gradients"] = 4 * n  # its buckets
    if case.strategy == "fsdp2":
        parts |= {"gathered": 4 * n, "quantized": e * n}
    positions = max(case.scored * SCORED, 1)
    logits = positions * e * facts.student.vocabulary
    return parts | {"logits": logits if case.scored else loss_bytes(case, facts)[0]}


def lasting_bytes(case: Case, facts: Facts) -> dict[str, int]:
    """What lives from step to step (see above)."""
    own, theirs, e, share = facts.student, facts.teacher, case.item, case.processes
    n, m = own.parameters + facts.learned, theirs.parameters
    parts = {"teacher": e * m, "latents": 4 * n, "quantized": e * n, "gradients": 4 * n, "optimizer": 8 * n}
    if case.cached is not None:
        del parts["teacher"]  # it comes for scoring
    if case.strategy == "deepspeed_zero2":
        parts["latents"] += 4 * n // share
        parts |= {"gradients": 4 * n // share, "optimizer": 8 * n // share}
        parts["buckets"] = 2 * 4 * min(n, BUCKET)
    elif case.strategy == "fsdp2":
        parts |= {name: parts[name] // share for name in ("latents", "gradients", "optimizer")}
        parts["gathered"] = 4 * (2 * own.outside + 3 * own.layer)
        if case.checkpointing:
            parts["quantized"] = e * (own.layer + own.outside)
        if case.cached is None and case.shard_teacher:
            parts["teacher"] = e * (theirs.outside + (m - theirs.outside) // share + 2 * theirs.layer)
    return parts
