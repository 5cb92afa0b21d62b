"""The verbs of `razor <verb> key=value ...`, each with its config in conf/<verb>.yaml."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from razor.cli.allocate import allocate
from razor.cli.compare import compare
from razor.cli.config import about, build, composed, conf_dir, model_source, quantization
from razor.cli.estimate import estimate
from razor.cli.evaluate import evaluate
from razor.cli.export import export
from razor.cli.push import push
from razor.cli.rerun import rerun
from razor.cli.talk import chat, playground, serve
from razor.cli.teacher import teaching
from razor.errors import RazorError


def size(overrides: Sequence[str]) -> int:
    """`razor size`: exact bits of a model under a recipe."""
    from razor.evals.size_table import size_summary, size_table

    config = composed("size", overrides)
    source, recipe = model_source(config), quantization(config)
    if config.json:
        print(json.dumps(size_summary(source, recipe)))
    else:
        print(size_table(source, recipe))
    return 0


def plan(overrides: Sequence[str]) -> int:
    """`razor plan`: which matrix of a model gets what."""
    from razor.evals.plan_table import PlanTable

    config = composed("plan", overrides)
    if config.out == "":
        raise RazorError("out= is empty: give a folder, or leave it out.")
    table = PlanTable(model_source(config), quantization(config))
    written = [] if config.out is None else table.write(Path(config.out))
    if config.json:
        print(json.dumps(table.summary()))
    else:
        print("\n".join([table.text(config.full), *(f"wrote {path}" for path in written)]))
    return 0


def formats(overrides: Sequence[str]) -> int:
    """`razor formats`: a table of all number formats."""
    from razor.evals.format_table import decoder_matrices, format_table

    config = composed("formats", overrides)
    names = sorted(path.stem for path in (conf_dir() / "quant" / "format").glob("*.yaml"))
    built = {name: build(composed("formats", [f"+quant/format@format={name}"]).format) for name in names}
    matrices = None
    if config.real:
        source = model_source(config)
        source.prepare()
        matrices = decoder_matrices(source)
    print(format_table(built, matrices, config.model.name))
    return 0


def quantize(overrides: Sequence[str]) -> int:
    """`razor quantize`: plain rounding, or what a start makes of it, to a packed folder, without training."""
    import torch

    from razor.export.compressed import ROUNDED, STARTED
    from razor.export.folder import check_place, save
    from razor.export.packed import check_packed, packed_bytes
    from razor.models.sample import sample_inputs
    from razor.models.task import name_classes
    from razor.recipe import Recipe
    from razor.recipe import quantize as apply

    config = composed("quantize", overrides)
    if config.out in (None, ""):
        raise RazorError("out= is empty: give the folder of the packed model.")
    source, folder = model_source(config), Path(str(config.out))
    check_place(folder)
    start, quant = build(config.start) or None, quantization(config)
    recipe = Recipe(quant.name, start.held(quant) if start else quant, compute_dtype=config.compute_dtype)
    source.prepare()
    assert recipe.quant is not None
    plan = recipe.quant.plan(source.skeleton())  # what does not fit is said before weights are loaded
    images, names = _told_of_images(source, config)
    if start is None:
        student = apply(source.load(torch.bfloat16), recipe)
    else:
        start.check(source.skeleton(), plan)
        text = teaching(config)
        text.check()
        batches = start.batches(text.corpus().text, text.seed)
        student = apply(source.load(torch.bfloat16), recipe)
        print(start(torch.nn.Module.to(student, text.settings.device), batches, text.load_teacher()))
    student = torch.nn.Module.to(student, "cpu").eval()
    told = about(config, recipe.quant, STARTED if start else ROUNDED)
    if names is not None:
        name_classes(student.config, names)
    save(student, source.tokenizer(), folder, told | images)
    check_packed(student, folder, sample_inputs(student, student.config))
    size = packed_bytes(folder) / 1e6
    print(f"{folder}: {recipe.quant.w_a_kv}, {size:.1f} MB of weights, read back with the same logits")
    if source.task == "text":
        print(f"talk     razor chat run={folder}")
    return 0


def _told_of_images(source: Any, config: Any) -> tuple[dict[str, str], tuple[str, ...] | None]:
    """What a classifier's card says of its images, and names of its classes, where the config has its data.

    Raises:
        RazorError: the data is of images that do not fit the model.
    """
    if source.task != "images" or (images := build(config.data.source)).task != "images":
        return {}, None
    own = source.config()
    images.check_rows(own, 1, None)
    return images.described(own), images.class_names_for(own)


def cache_teacher(overrides: Sequence[str]) -> int:
    """`razor cache_teacher`: run the teacher once over a job's training text, and keep what it says."""
    from razor.data.teacher_cache import cache_folder
    from razor.data.teacher_cache_kinds import kept_of
    from razor.data.teacher_cache_write import write_cache
    from razor.train.run import quieten

    config = composed("cache_teacher", overrides)
    if config.teacher in ("same", "cached"):  # the latter in the words of the job that will read it
        config.teacher = config.teacher_cache.teacher
    elif config.teacher_cache.teacher not in ("same", config.teacher):
        raise RazorError(
            f"teacher={config.teacher} and teacher_cache.teacher={config.teacher_cache.teacher}: give one."
        )
    if config.out == "":
        raise RazorError("out= is empty: give a folder, or leave it out.")
    config.teacher_targets = None
    kept = kept_of(config.kind, config.draws, config.k, config["values"], config.teacher_cache.seed)
    quieten()
    job = teaching(config)
    job.check()
    if job.model.task != "text":
        raise RazorError(
            f"razor cache_teacher keeps what a teacher says of text, and {job.model.name} reads {job.model.task}."
        )
    kept.check(job.teacher.config().get_text_config().vocab_size)
    corpus = job.corpus()
    identity = job.identity(corpus, kept)
    folder = cache_folder(identity) if config.out is None else Path(config.out)
    try:
        done = write_cache(folder, corpus.text, identity, kept, job.load_teacher, config.rows_per_batch)
    except KeyboardInterrupt:
        print(f"Stopped. Whole shards are kept in '{folder}'; the same command goes on.", file=sys.stderr)
        raise
    found = done.to_dict() | kept.describe() | {"teacher": job.teacher.name}
    if config.json:
        print(json.dumps(found))
        return 0
    print(
        f"{folder}: {done.tokens:,} tokens, {done.bytes / 1e6:.1f} MB, {found['bytes_per_token']:.1f} bytes a token"
    )
    if done.made:
        print(f"{done.made:,} tokens in {done.seconds:.0f} s, {found['tokens_per_second']:.0f} tokens/s")
    words = [f"teacher_cache.{key}={value}" for key, value in kept.describe().items()]
    if config.out is not None:
        words.append(f"teacher_targets={folder}")
    print(f"train    python train.py teacher=cached {' '.join(words)} ... (the words of this command)")
    return 0


VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "size": size,
    "plan": plan,
    "allocate": allocate,
    "estimate": estimate,
    "formats": formats,
    "quantize": quantize,
    "cache_teacher": cache_teacher,
    "evaluate": evaluate,
    "export": export,
    "push": push,
    "compare": compare,
    "rerun": rerun,
    "chat": chat,
    "playground": playground,
    "serve": serve,
}
