"""An estimate for people, and as plain data."""

from __future__ import annotations

from typing import Any

from razor.train.estimate.needs import CHECKPOINTS, Estimate, helps
from razor.train.estimate.speed import flops_per_token


def estimate_text(of: Estimate) -> str:
    """A few lines."""
    case, facts, own = of.case, of.facts, of.facts.student
    lines = [
        f"model    {case.model.name}, {own.parameters / 1e6:.1f} M parameters: "
        f"{facts.quantized / 1e6:.1f} M quantized, {(own.parameters + facts.learned) / 1e6:.1f} M trained",
        "teacher  "
        + (
            f"{case.teacher.name}, {facts.teacher.parameters / 1e6:.1f} M parameters"
            + ("" if case.taught else ", for scoring alone")
        ),
        f"run      {_processes(of)}, micro-batches of {_rows(of)} in {_name(case.dtype)}"
        + (", gradient checkpointing" if case.checkpointing else ""),
        f"memory   {of.memory / 1e9:.2f} GB a process at most; at that moment ({of.held.moment}):",
        *(f"         {name:12s} {size / 1e9:8.3f}" for name, size in of.held.parts.items()),
        "moments  " + ", ".join(f"{name} {size / 1e9:.2f}" for name, size in _moments(of).items()),
        "kept     for the backward pass, by kind of layer: "
        + ", ".join(f"{name} {size / 1e9:.3f}" for name, size in _kinds(of).items())
        + ("" if facts.saved.exact else " (this model cannot run on shapes alone)"),
        *([f"host     {of.host / 1e9:.0f} GB of its own memory on each machine"] if of.host else []),
        f"disk     {of.disk / 1e9:.2f} GB: {CHECKPOINTS} checkpoints of {of.checkpoint / 1e9:.2f}, "
        f"the packed model of {facts.packed / 1e9:.3f} twice while it is written; logs are small",
        _speed_line(of),
    ]
    return "\n".join([*lines, *_verdict(of)])


def _rows(of: Estimate) -> str:
    case = of.case
    return f"{case.rows} images" if case.image else f"{case.rows} x {case.length} tokens"


def _processes(of: Estimate) -> str:
    case = of.case
    many = "1 process" if case.processes == 1 else f"{case.processes} processes ({case.strategy})"
    return f"{many} on {case.device}" + (f", {case.nodes} machines" if case.nodes > 1 else "")


def _speed_line(of: Estimate) -> str:
    work = flops_per_token(of.case, of.facts)
    start = f"speed    {work / 1e9:.2f} GFLOP a{'n image' if of.case.image else ' token'}; "
    if of.rate is None or of.tokens_per_second is None or of.seconds is None:
        return start + "the device is not here: flops= says how fast it computes"
    many = "" if of.case.processes == 1 else f" x {of.case.processes} (waiting for each other left out)"
    unit = f"{of.case.unit}s"
    return (
        f"{start}{of.tokens_per_second:,.0f} {unit}/s at {of.rate.flops / 1e12:.3g} TFLOP/s{many} "
        f"({of.rate.source}); {of.seconds / 3600:.2f} hours for {of.case.total_tokens:,} {unit}"
    )


def _verdict(of: Estimate) -> list[str]:
    if of.limit is None:
        return ["fits     nobody knows: the device is not here, and no memory= was given"]
    if of.fits:
        return [f"fits     yes, of {of.limit / 1e9:.1f} GB"]
    found = helps(of)
    hint = "What would help:" if found else "Nothing that Razor can change would help."
    lines = [f"fits     NO: it does not fit into {of.limit / 1e9:.1f} GB. {hint}"]
    for words, other in found:
        answer = "fits" if other.fits else "still does not fit"
        lines.append(f"         {other.memory / 1e9:8.2f} GB, {answer}: {words}")
    return lines


def estimate_summary(of: Estimate) -> dict[str, Any]:
    """Plain data; bytes, seconds, numbers of parameters and operations."""
    case, facts, own = of.case, of.facts, of.facts.student
    return {
        "model": case.model.name,
        "teacher": case.teacher.name,
        "teacher_runs": case.taught,
        "parameters": own.parameters,
        "quantized_parameters": facts.quantized,
        "trained_parameters": own.parameters + facts.learned,
        "device": case.device,
        "strategy": case.strategy,
        "processes": case.processes,
        "nodes": case.nodes,
        "rows_per_batch": case.rows,
        **({"image": list(case.image)} if case.image else {"sequence_length": case.length}),
        "gradient_checkpointing": case.checkpointing,
        "compute_dtype": _name(case.dtype),
        "memory": of.memory,
        "moment": of.held.moment,
        "parts": of.held.parts,
        "moments": _moments(of),
        "saved_by_layer_kind": _kinds(of),
        "saved_is_exact": facts.saved.exact,
        "limit": of.limit,
        "fits": of.fits,
        "helps": {words: other.memory for words, other in helps(of)} if of.fits is False else {},
        "host": of.host,
        "disk": of.disk,
        "checkpoint": of.checkpoint,
        "packed": facts.packed,
        f"flops_per_{case.unit}": flops_per_token(case, facts),
        "flops_per_step": flops_per_token(case, facts) * case.tokens * case.accumulate,
        "rate": None if of.rate is None else of.rate.flops,
        "rate_source": None if of.rate is None else of.rate.source,
        f"{case.unit}s_per_second": of.tokens_per_second,
        f"{case.unit}s": case.total_tokens,
        "seconds": of.seconds,
    }


def _moments(of: Estimate) -> dict[str, int]:
    return {name: sum(parts.values()) for name, parts in of.held.moments.items()}


def _kinds(of: Estimate) -> dict[str, int]:
    return dict(sorted(of.facts.saved.kinds.items(), key=lambda pair: -pair[1]))


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
