"""From a path to an engine: what is meant by it, whether it is whole, and what will run it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from razor.errors import RazorError, did_you_mean
from razor.export.manifest import check_files
from razor.models.llama_process import check_apart
from razor.models.llama_server import KV_TYPES, load_package
from razor.serve.engine import Engine
from razor.serve.found import KINDS, Found, find_models

ENGINES = ("auto", "llama_cpp", "transformers")
MOST = {"context": 1 << 24, "parallel": 256, "threads": 1024}


def open_engine(
    run: Path, engine: str = "auto", context: int = 4096, kv: str = "q8_0", threads: int | None = None
) -> Engine:
    """Load the model that a path means.

    Args:
        run: a run folder, a packed folder, an export or a GGUF file. Where it holds several kinds, GGUF goes first,
            if llama.cpp is installed, then packed, then dense.
        engine: `llama_cpp` runs GGUF files, `transformers` all others; `auto` what is there.
        context: for llama.cpp, most tokens of prompt and answer together.
        kv: for llama.cpp, how keys and values are kept.
        threads: for llama.cpp; None: the cores there are.

    Raises:
        RazorError: no such engine or model, several of one kind, damage, a missing package.
    """
    check_llama(context, kv, threads)
    return load(choose(run, engine), context, kv, threads)


def check_llama(context: int, kv: str, threads: int | None, parallel: int = 1) -> None:
    """Check what llama.cpp is told, before anything is looked for or loaded.

    Args:
        context: most tokens of prompt and answer together.
        kv: how keys and values are kept.
        threads: None: the cores there are.
        parallel: requests computed at once, each with a context of its own.

    Raises:
        RazorError: no number, one out of range, or no such way to keep them.
    """
    for key, value in (("context", context), ("parallel", parallel), ("threads", threads)):
        if key == "threads" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST[key]:
            raise RazorError(f"{key}='{value}' must be a whole number in 1..{MOST[key]}.")
    if context * parallel > MOST["context"]:
        raise RazorError(
            f"context={context} for each of parallel={parallel}: {context * parallel:,} tokens together, "
            f"of at most {MOST['context']:,}."
        )
    if kv not in KV_TYPES:
        raise RazorError(f"kv='{kv}'.{did_you_mean(str(kv), KV_TYPES)}")


def choose(run: Path, engine: str = "auto") -> Found:
    """The one model that a path means for an engine; see `open_engine`."""
    if engine not in ENGINES:
        raise RazorError(f"engine='{engine}'.{did_you_mean(engine, ENGINES)}")
    found = find_models(run)
    kinds = {"llama_cpp": KINDS[:1], "transformers": KINDS[1:], "auto": KINDS}[engine]
    if engine == "auto" and importlib.util.find_spec("xllamacpp") is None:
        kinds = (*KINDS[1:], KINDS[0])
    for kind in kinds:
        of_kind = [one for one in found if one.kind == kind]
        nearest = min((one.depth for one in of_kind), default=0)  # packed/ goes before exports/packed/
        of_kind = [one for one in of_kind if one.depth == nearest]
        if of_kind:
            if len(of_kind) > 1:
                names = ", ".join(one.name for one in of_kind[:8])
                raise RazorError(f"run='{run}' holds several {kind} models, name one of them: {names}.")
            return of_kind[0]
    raise RazorError(f"run='{run}' {_nothing(run, engine, found)}")


def load(found: Found, context: int = 4096, kv: str = "q8_0", threads: int | None = None) -> Engine:
    """Check that a model is whole, and load it.

    Raises:
        RazorError: damage, a missing package, or a file that the runtime cannot read.
    """
    check_whole(found)
    if found.kind == "gguf":
        from razor.serve.llama_engine import LlamaEngine

        return LlamaEngine(found.path, found.name, context, kv, threads)
    from razor.serve.transformers_engine import TransformersEngine

    return TransformersEngine.open(found.path, found.name, found.kind == "packed")


def check_whole(found: Found) -> None:
    """Check a model's files against their checksums; a GGUF without one is tried in a process of its own.

    llama.cpp checks much of a file, but aborts where it finds itself wrong, and would take this process with it.

    Raises:
        RazorError: damage, a file that must not be read, a missing package.
    """
    try:
        known = check_files(found.manifest)["sha256"] if found.manifest is not None else {}
    except OSError as error:
        raise RazorError(f"'{error.filename or found.path}' cannot be read ({error.strerror}).") from error
    if found.kind == "gguf" and found.path.name not in known:
        load_package()
        check_apart(found.path)


def _nothing(run: Path, engine: str, found: list[Found]) -> str:
    if not run.exists():
        return "does not exist: give a run folder, a packed folder, an export or a GGUF file."
    if found:
        others = ", ".join(sorted({one.kind for one in found}))
        wanted = (
            "a GGUF file (razor export run=RUN export=[gguf])" if engine == "llama_cpp" else "a packed model"
        )
        return f"holds {others}, but engine={engine} needs {wanted}."
    return "holds no packed model, dense export or GGUF file (a finished run has packed/)."
