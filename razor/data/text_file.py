"""Reading a text file that a person named, and what is said when that fails."""

from __future__ import annotations

from pathlib import Path

from razor.errors import RazorError


def read_text(path: str | Path, option: str) -> str:
    """All of a UTF-8 file, without a byte order mark.

    Args:
        path: `~` is the home folder.
        option: the key that named it, for error texts.

    Raises:
        RazorError: no file, not UTF-8, or not readable.
    """
    place = Path(path).expanduser()
    try:
        return place.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise RazorError(f"{option}='{path}' is no file.") from error
    except UnicodeDecodeError as error:
        raise RazorError(f"'{place}' is no UTF-8 text (byte {error.start}): convert it first.") from error
    except OSError as error:
        raise RazorError(f"'{place}' cannot be read: {error.strerror}.") from error
