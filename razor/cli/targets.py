"""What a word of `razor evaluate` means: where the model lies, how it is opened, what may be said of its size."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from razor.cli.config import conf_dir, model_source
from razor.errors import RazorError, did_you_mean
from razor.evals.targets import Target, in_llama_cpp, in_memory

DEVICES = ("auto", "cpu", "cuda", "mps")
SIXTEEN = "W16-A16-KV16"


def target_of(name: str, config: DictConfig) -> Target:
    """The model that a word means. Nothing heavy is loaded, but it is sure to be there.

    Args:
        name: a run folder, a packed folder, an export, a GGUF file, a folder of Transformers, an option of
            conf/model or a hub id; tried in this order.
        config: see conf/evaluate.yaml.

    Raises:
        RazorError: it is none of these, is damaged, or cannot be had.
    """
    from razor.export.packed_files import is_packed

    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise RazorError(f"target='{name}' is a file, and no .gguf: give a folder or a GGUF file.")
        return _gguf(name, path, config)
    if path.is_dir():
        packed = next((folder for folder in (path, path / "packed") if is_packed(folder)), None)
        if packed is not None:
            return _packed(name, packed, config)
        if (path / "config.json").is_file():
            return _folder(name, path, config)
        from razor.serve.opening import choose

        try:
            found = choose(path)
        except RazorError as error:
            raise RazorError(str(error).replace("run=", "target=", 1)) from error
        of = {"gguf": _gguf, "packed": _packed, "dense": _folder}[found.kind]
        return of(name, found.path, config)
    options = {file.stem: file for file in (conf_dir() / "model").glob("*.yaml") if file.stem != "hub"}
    if name in options:
        model = OmegaConf.load(options[name])
        return _source(name, model_source(OmegaConf.create({"model": model})), config)
    if "/" not in name or name.startswith((".", "/", "~")):
        raise RazorError(
            f"There is no target={name}: no file or folder, and no option of conf/model."
            f"{did_you_mean(name, options)} A hub id has a /."
        )
    from razor.models import HubModel

    return _source(name, HubModel(Path(name).name, name), config)


def _packed(name: str, folder: Path, config: DictConfig) -> Target:
    from razor.export.compressed import Compressed
    from razor.export.packed import load_packed
    from razor.export.packed_files import CARD, check_sums, files_of
    from razor.storage import digest, file_digest

    compressed = Compressed.open(folder)
    check_sums(folder)
    _check_text(name, compressed.config)
    read = [file for file in files_of(folder) if file.endswith((".safetensors", ".json", ".jinja", ".model"))]
    marks = {file: file_digest(folder / file) for file in read if file != CARD and (folder / file).is_file()}
    size = compressed.size.total

    def load() -> tuple[Any, Any]:
        model, tokenizer = load_packed(folder)
        return model.to(device_of(config)), tokenizer

    return Target(
        name,
        "packed",
        compressed.about.get("w_a_kv", "?"),
        size.ratio_paper,
        size.ratio_disk,
        size.bytes_disk,
        f"packed-{digest(marks)}",
        compressed.tokenizer,
        lambda: in_memory(load, name),
    )


def _check_text(name: str, config: Any) -> None:
    """Raise RazorError for a model that benchmarks of text cannot ask."""
    from razor.models import task_of

    task = task_of(config)
    if task == "images":
        raise RazorError(
            f"'{name}' is an image classifier: its scores are in the report of its run (evals=classification)."
        )
    if task == "media":
        raise RazorError(f"'{name}' reads images or sound, which these benchmarks have none of.")


def _folder(name: str, folder: Path, config: DictConfig) -> Target:
    """A folder that Transformers reads by itself, in 16 bits or quantized by somebody else."""
    from razor.models import HubModel

    source = HubModel(folder.resolve().name, str(folder.resolve()))
    source.prepare()
    if getattr(source.config(), "quantization_config", None) is None:
        return _source(name, source, config)
    found = _source(name, source, config)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    ratio = (found.bytes_disk or 0) / size if size else None
    return Target(
        name, found.kind, "?", None, ratio, size or None, found.fingerprint, found.tokenizer, found.open
    )


def _source(name: str, source: Any, config: DictConfig) -> Target:
    """A 16-bit model from wherever a run takes one."""
    import torch

    from razor.export.packed_files import DTYPES

    if config.compute_dtype not in DTYPES:
        raise RazorError(
            f"compute_dtype='{config.compute_dtype}'.{did_you_mean(config.compute_dtype, DTYPES)}"
        )
    dtype: torch.dtype = DTYPES[config.compute_dtype]
    source.prepare()
    _check_text(name, source.config())
    parameters = sum(parameter.numel() for parameter in source.skeleton().parameters())
    tokenizer = source.tokenizer()
    return Target(
        name,
        "transformers",
        SIXTEEN,
        1.0,
        1.0,
        2 * parameters,
        f"{source.fingerprint()}-{config.compute_dtype}",
        tokenizer,
        lambda: in_memory(lambda: (source.load(dtype).to(device_of(config)), tokenizer), name),
    )


def _gguf(name: str, path: Path, config: DictConfig) -> Target:
    from razor.evals.gguf_facts import GGUFFacts
    from razor.models.llama_library import version
    from razor.serve.found import find_models
    from razor.serve.opening import check_llama, check_whole
    from razor.storage import digest, file_digest

    check_llama(config.context, config.kv, config.threads)
    (found,) = find_models(path)
    check_whole(found)
    facts = GGUFFacts.of(path)
    how = [file_digest(path), version(), config.context, config.kv]

    def make() -> Any:
        from razor.evals.llama_lm import LlamaLM

        return LlamaLM(path, facts, config.context, config.kv, config.threads, sys.stderr)

    return Target(
        name,
        "gguf",
        widths(found.bits, 8 * facts.bytes / max(1, facts.parameters), config.kv),
        None,
        2 * facts.parameters / max(1, facts.bytes),
        facts.bytes,
        f"gguf-{digest(how)}",
        _WithTemplate(facts.chat_template),
        lambda: in_llama_cpp(make, name),
    )


class _WithTemplate:
    """As much of a tokenizer as has to be known before a GGUF is opened."""

    def __init__(self, chat_template: str | None) -> None:
        self.chat_template = chat_template


def widths(told: str, bits: float, kv: str) -> str:
    """W-A-KV of a GGUF: weights as its export names them, else by its bits; the rest as llama.cpp has it."""
    weights = told.split("-")[0] or f"W{bits:.2f}"
    activations = "A16" if bits >= 16 else "A8"
    return f"{weights}-{activations}-{'KV8' if kv == 'q8_0' else 'KV16'}"


def device_of(config: DictConfig) -> Any:
    """Where models of Transformers compute.

    Raises:
        RazorError: an unknown device, or one that is not here.
    """
    import torch

    there: dict[str, Callable[[], bool]] = {
        "cpu": lambda: True,
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
    }
    if config.device not in DEVICES:
        raise RazorError(f"device='{config.device}'.{did_you_mean(str(config.device), DEVICES)}")
    if config.device == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if there[name]()))
    if not there[config.device]():
        raise RazorError(f"device={config.device}: there is none here. Choices: cpu, auto.")
    return torch.device(config.device)
