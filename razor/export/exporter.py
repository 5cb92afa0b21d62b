"""Writing a compressed model for a runtime, and proving that the runtime has the same model.

An `Exporter` knows one format. Before weights are loaded it looks at the plan and says what it cannot hold; then
it writes, into a folder that nobody sees yet; then it reads its own files back, compares codes bit for bit and, in
the runtime itself where that is installed, logits; only then does the folder get its name. Card and manifest say
what was compared, and what was not run.

    <out>/<format>/     the files of the format
                        README.md      model card: what, how, scores, exact bits, limits, how to load it, licence
                        manifest.json  format, proof, and the checksum of every other file
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from razor.errors import RazorError
from razor.export.card import model_card
from razor.export.compressed import Compressed
from razor.export.manifest import MANIFEST, read_manifest, write_manifest
from razor.models.task import Task, task_of
from razor.storage import atomic_write, require_space

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from razor.quant import Plan


@dataclass(frozen=True)
class Proof:
    """What reading an export back has shown.

    Attributes:
        facts: for the manifest: what was compared and how close it came (plain data).
        lines: the same for people, a sentence each.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    lines: tuple[str, ...] = ()


class Exporter(ABC):
    """One format that a runtime loads."""

    name: ClassVar[str]
    """What the option is called, and the folder it writes."""

    tags: ClassVar[tuple[str, ...]] = ()
    """For the model card, as the hub knows them."""

    tasks: ClassVar[tuple[Task, ...]] = ("text",)
    """Kinds of models that it holds."""

    @abstractmethod
    def check(
        self, plan: Plan, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        """Look for what the format cannot hold, by plan, architecture and, where it is at hand, tokenizer.

        Raises:
            RazorError: names the first such modules, how many there are, why, and which formats would do; or a
                package that is missing, with the command that installs it.
        """

    @abstractmethod
    def write(self, compressed: Compressed, folder: Path) -> None:
        """Write the format's files into an empty folder."""

    @abstractmethod
    def verify(self, compressed: Compressed, folder: Path) -> Proof:
        """Read the files back and compare with the compressed model.

        Raises:
            RazorError: they differ, or the runtime does not load them.
        """

    @abstractmethod
    def costs(self, compressed: Compressed, folder: Path) -> list[str]:
        """Sentences for card and terminal: what this format loses or adds (exact bits, what is not in it)."""

    @abstractmethod
    def usage(self, compressed: Compressed) -> str:
        """Markdown for the card: how to load it, as commands that run inside the exported folder."""

    def bytes(self, compressed: Compressed) -> int:
        """Upper bound of what it writes, for the check of the disk; as if everything took 32 bits by default."""
        return 4 * compressed.size.total.parameters


def export(compressed: Compressed, exporters: Mapping[str, Exporter], out: Path) -> dict[str, Path]:
    """Write a compressed model in several formats, each into a folder of its own, all or nothing each.

    Everything that can be known to fail fails before the first is written.

    Args:
        compressed: from `Compressed.open`.
        exporters: by name.
        out: the folder above theirs.

    Returns:
        Their folders, by name.

    Raises:
        RazorError: see `Exporter`; a folder that holds something else; a full disk.
    """
    for exporter in exporters.values():
        check_target(out / exporter.name, exporter.name)
        check_format(exporter, compressed.config)
        exporter.check(compressed.plan, compressed.config, compressed.tokenizer)
    needed = sum(exporter.bytes(compressed) for exporter in exporters.values())
    require_space(out, needed, "these exports", "out=...")
    done = {}
    for exporter in exporters.values():
        done[exporter.name] = _one(compressed, exporter, out / exporter.name)
    return done


def _one(compressed: Compressed, exporter: Exporter, target: Path) -> Path:
    with atomic_write(target) as folder:
        folder.mkdir()
        try:
            exporter.write(compressed, folder)
            proof = exporter.verify(compressed, folder)
        except RazorError as error:  # nobody knows the folder by the name it has while it is written
            raise RazorError(str(error).replace(str(folder), str(target))) from error
        costs = exporter.costs(compressed, folder)
        card = model_card(
            compressed, exporter.name, exporter.tags, costs, proof.lines, exporter.usage(compressed)
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        write_manifest(folder, exporter.name, compressed.about, proof.facts, compressed.digest)
    print(f"{target}: {size / 1e6:.1f} MB")
    for line in (*proof.lines, *costs):
        print(f"  - {line}")
    return target


def check_format(exporter: Exporter, config: PretrainedConfig) -> None:
    """Raise RazorError if a format is not for models of this kind."""
    if (task := task_of(config)) not in exporter.tasks:
        raise RazorError(f"export={exporter.name} holds no models of {task}: export=[packed,dense] do.")


def check_target(folder: Path, format: str) -> None:
    """Check that an export may be written here: over nothing, or over an older export of the same format.

    Raises:
        RazorError: a file, or a folder that holds something else, which would be lost.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        manifest = read_manifest(folder)
    except RazorError:
        manifest = {"format": None, "sha256": {}}
    known = {MANIFEST, *manifest["sha256"]}
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if manifest["format"] != format or files - known:
        other = f" (see '{min(files - known)}')" if files - known else ""
        raise RazorError(
            f"'{folder}' is there already and is no export={format} alone{other}: choose another out=."
        )
