"""Writing into place: the old or the new, and never neither."""

from __future__ import annotations

from pathlib import Path

import pytest

from razor import storage
from razor.errors import RazorError
from razor.storage import atomic_write


def folder(path: Path, text: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "file").write_text(text)
    return path


def write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        folder(temporary, text)


@pytest.mark.parametrize("swap", [True, False], ids=["in one step", "in two"])
def test_a_folder_replaces_a_folder(tmp_path: Path, swap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not swap:
        monkeypatch.setattr(storage, "_exchanged", lambda *_: False)
    path = folder(tmp_path / "there", "old")
    (path / "only in the old").touch()
    write(path, "new")
    assert (path / "file").read_text() == "new" and not (path / "only in the old").exists()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(5, "Input/output error")])
def test_stopped_between_two_renames_the_old_one_stays(
    tmp_path: Path, stop: BaseException | type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, move = folder(tmp_path / "there", "old"), storage.os.replace

    def interrupted(source: Path, target: Path) -> None:
        if Path(source).name == "there":
            raise stop
        move(source, target)

    monkeypatch.setattr(storage, "_exchanged", lambda *_: False)
    monkeypatch.setattr(storage.os, "replace", interrupted)
    with pytest.raises((KeyboardInterrupt, RazorError)):
        write(path, "new")
    assert (path / "file").read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_failing_writer_leaves_the_old_one(tmp_path: Path) -> None:
    path = folder(tmp_path / "there", "old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        folder(temporary, "half")
        raise ZeroDivisionError
    assert (path / "file").read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_links_are_followed(tmp_path: Path) -> None:
    target, link = folder(tmp_path / "target", "old"), tmp_path / "link"
    link.symlink_to(target)
    write(link, "new")
    assert link.is_symlink() and (target / "file").read_text() == "new"
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "later")
    write(dangling, "made")
    assert (tmp_path / "later" / "file").read_text() == "made"


def test_a_place_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RazorError, match="cannot be written"), atomic_write(tmp_path / "file" / "inner"):
        pass


def test_a_known_file_is_read_again_once_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, plain = [], storage.file_digest
    monkeypatch.setattr(storage, "file_digest", lambda path: read.append(path) or plain(path))
    path = tmp_path / "file"
    path.write_text("one")
    assert storage.known_digest(path) == storage.known_digest(path) == plain(path) and len(read) == 1
    path.write_text("another")
    assert storage.known_digest(path) == plain(path) and len(read) == 2
