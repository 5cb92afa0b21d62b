"""What an export consists of: `manifest.json`, with the checksum of every file.

Runtimes do not look at it; Razor's own doors (load, chat, serve, push) do, so that a damaged file ends in one line
that names it instead of in garbage.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from razor.errors import RazorError
from razor.storage import MANIFEST as MANIFEST
from razor.storage import file_digest


def write_manifest(
    folder: Path, format: str, about: Mapping[str, str], proof: Mapping[str, Any], source: str = ""
) -> None:
    """Write the manifest of everything that lies in a folder.

    Args:
        folder: complete but for the manifest.
        format: name of the exporter.
        about: what was compressed, and how.
        proof: what was compared when it was written.
        source: digest of the packed weights that it was made from.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    sums = {path.relative_to(folder).as_posix(): file_digest(path) for path in files}
    content = {"format": format, "about": dict(about), "source": source, "proof": dict(proof), "sha256": sums}
    (folder / MANIFEST).write_text(json.dumps(content, indent=1), encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an export.

    Raises:
        RazorError: there is none, or it is damaged.
    """
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except OSError as error:
        raise RazorError(f"'{folder}' is no export of Razor: it has no {MANIFEST}.") from error
    except ValueError as error:
        raise RazorError(f"'{folder / MANIFEST}' is damaged: it cannot be read.") from error
    sums = content.get("sha256") if isinstance(content, dict) else None
    whole = isinstance(sums, dict) and all(isinstance(s, str) for s in sums.values())
    if not whole or not isinstance(content.get("format"), str) or not isinstance(content.get("about"), dict):
        raise RazorError(f"'{folder / MANIFEST}' is damaged: it lacks format, about or sha256.")
    check_names(content["sha256"], folder / MANIFEST)
    return dict(content)


def check_names(names: Iterable[str], where: Path) -> None:
    """Check that names of files lead to no place outside of their folder, wherever the list comes from.

    Raises:
        RazorError: the first that does.
    """
    for name in names:
        paths = PurePosixPath(name), PureWindowsPath(name)
        outside = any(path.is_absolute() or path.drive or ".." in path.parts for path in paths)
        if outside or not paths[0].parts:
            raise RazorError(f"'{where}' is damaged: it lists '{name}', which lies in another folder.")


def check_files(folder: Path) -> dict[str, Any]:
    """Compare every file of an export with its checksum; the manifest.

    Raises:
        RazorError: names the first file that is missing or another one.
    """
    content = read_manifest(folder)
    for name, digest in content["sha256"].items():
        path = folder / name
        if not path.is_file():
            raise RazorError(f"'{path}' is missing: {MANIFEST} lists it. Export again.")
        if file_digest(path) != digest:
            raise RazorError(f"'{path}' is damaged: its checksum is not the one in {MANIFEST}. Export again.")
    return content
