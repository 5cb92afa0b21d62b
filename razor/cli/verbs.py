"""The verbs of `razor <verb> key=value ...`, each with its config in conf/<verb>.yaml."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from razor.cli.config import build, composed, conf_dir, model_source, quantization
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
    """`razor quantize`: plain rounding to a packed folder, without training."""
    import torch

    from razor.export.folder import check_place, save
    from razor.export.packed import check_packed, packed_bytes
    from razor.recipe import Recipe
    from razor.recipe import quantize as apply

    config = composed("quantize", overrides)
    source, folder = model_source(config), Path(config.out)
    recipe = Recipe(config.quant.name, quantization(config), compute_dtype=config.compute_dtype)
    source.prepare()
    assert recipe.quant is not None
    recipe.quant.plan(source.skeleton())  # what does not fit is said before weights are loaded
    check_place(folder)
    student = apply(source.load(torch.bfloat16), recipe).eval()
    save(student, source.tokenizer(), folder)
    check_packed(student, folder, torch.arange(64).unsqueeze(0) % student.config.get_text_config().vocab_size)
    size = packed_bytes(folder) / 1e6
    print(f"{folder}: {recipe.quant.w_a_kv}, {size:.1f} MB of weights, read back with the same logits")
    print(f"talk     razor chat run={folder}")
    return 0


def chat(overrides: Sequence[str]) -> int:
    """`razor chat`: talk to a packed model."""
    from razor.serve.chat import Chat

    config = composed("chat", overrides)
    options = {key: value for key, value in config.items() if key not in ("run", "prompt", "debug")}
    talk = Chat.open(Path(config.run), **options)  # type: ignore[arg-type]
    if config.prompt is not None:
        talk.answer(str(config.prompt))
    else:
        talk.loop()
    return 0


VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "size": size,
    "plan": plan,
    "formats": formats,
    "quantize": quantize,
    "chat": chat,
}
