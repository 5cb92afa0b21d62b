"""What IFEval needs besides rows: two small packages, and the sentence splitter of nltk.

lm-eval's checkers ask nltk for its English Punkt model, which nltk downloads from the web when the task is loaded
(and, without a web, fails at the first instruction that counts sentences). The same four files lie in the wheel of
llama-index-core, so where nltk has none they are taken from there, compared with their known checksum, and kept in
the cache. langdetect guesses languages by chance unless it is told a seed: it gets one, so that an answer is judged
alike every time.
"""

from __future__ import annotations

import zipfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from razor.errors import RazorError
from razor.storage import atomic_write, cache_dir, digest, fetch_wheel, file_digest

PACKAGES = ("langdetect", "immutabledict", "nltk")
PUNKT = "llama-index-core==0.14.25"
INSIDE = "llama_index/core/_static/nltk_cache/tokenizers/punkt_tab/english"
FILES = ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt")
CHECKSUM = "1d2bebfba8580e1b"
"""Of the checksums of the four files."""


def prepare_ifeval() -> None:
    """Make everything that IFEval's checkers import and read be there.

    Raises:
        RazorError: a package is missing, or the sentence splitter can be had neither from nltk nor from an index.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise RazorError(f"ifeval needs {', '.join(missing)}: pip install 'razor-qad[table]'.")
    nltk = import_module("nltk")
    import_module("langdetect").DetectorFactory.seed = 0
    home = str(cache_dir() / "nltk_data")
    if home not in nltk.data.path:
        nltk.data.path.append(home)
    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        _fetch(Path(home) / "tokenizers" / "punkt_tab" / "english")


def _fetch(folder: Path) -> None:
    print(f"Preparing nltk's sentence splitter (once, 12 MB of the package {PUNKT}) in '{folder}'.")
    wheel = fetch_wheel(PUNKT, cache_dir() / "downloads")
    try:
        with zipfile.ZipFile(wheel) as archive, atomic_write(folder) as temporary:
            temporary.mkdir()
            for name in FILES:
                (temporary / name).write_bytes(archive.read(f"{INSIDE}/{name}"))
            if checksum(temporary) != CHECKSUM:
                raise KeyError("its Punkt files are others than expected")
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise RazorError(
            f"The package {PUNKT} could not be read ({error}); '{wheel}' was removed, run the command again."
        ) from error
    finally:
        wheel.unlink(missing_ok=True)


def checksum(folder: Path) -> str:
    """Of the four files of a Punkt model."""
    return digest([file_digest(folder / name) for name in FILES])
