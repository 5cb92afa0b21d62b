"""The peer's own environment, made once in the user's cache.

`edgerazor` 1.3.5 asks for libraries that a benchmark of its loss and its step never loads (torchvision, a
linter), so it is installed without dependencies beside the versions that it was found to run with.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

from razor.storage import cache_dir

PEER = "edgerazor==1.3.5"
LIBRARIES = ("torch==2.13.0", "transformers==4.57.6", "pyyaml", "pyfiglet", "colorama")


def peer_python(choice: str) -> Path | None:
    """The interpreter of the peer's environment, which is made if it is not there; None for "off".

    Args:
        choice: "on", "off", or the folder of an environment (made if missing).
    """
    if choice == "off":
        return None
    own = cache_dir() / "peers" / PEER.replace("==", "-")
    folder = own if choice == "on" else Path(choice).expanduser().absolute()
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not _works(python):
        foreign = folder.is_dir() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").is_file()
        if foreign or folder.is_file():
            sys.exit(
                f"peer={choice} is there and is no environment of Python. Choices: on, off, another folder."
            )
        print(f"Making the peer's environment, once: {folder} ({PEER}; about a gigabyte)", file=sys.stderr)
        venv.create(folder, with_pip=True)
        for words in (LIBRARIES, ("--no-deps", PEER)):
            if subprocess.run([python, "-m", "pip", "install", "--quiet", *words]).returncode:
                sys.exit(
                    f"pip could not install {' '.join(words)} into {folder}. Without the peer: peer=off."
                )
    return python


def _works(python: Path) -> bool:
    """Whether an environment is whole: the peer is installed last."""
    if not python.is_file():
        return False
    look = f"import importlib.metadata as m; assert m.version('edgerazor') == '{PEER.partition('==')[2]}'"
    return subprocess.run([python, "-c", look], capture_output=True).returncode == 0
