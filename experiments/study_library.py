"""The environment of another library that studies compare with: auto-round, whose packages are not Razor's own.

It is made once in the user's cache and shared by all studies; scripts that run in it know nothing of Razor.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

from razor.errors import RazorError
from razor.storage import cache_dir

PACKAGES = ("torch==2.13.0", "auto-round==0.16.1")


def environment_python(choice: str) -> Path:
    """The interpreter of the library's environment, made once in the user's cache.

    Raises:
        RazorError: it could not be made.
    """
    own = cache_dir() / "peers" / PACKAGES[1].replace("==", "-")
    folder = own if choice == "on" else Path(choice).expanduser().absolute()
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    look = "import importlib.metadata as m; m.version('auto-round')"
    if python.is_file() and not subprocess.run([python, "-c", look], capture_output=True).returncode:
        return python
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").is_file():
        raise RazorError(
            f"library={choice} is there and is no environment of Python. Choices: on, another folder."
        )
    print(f"Making the library's environment, once: {folder} (more than a gigabyte)", file=sys.stderr)
    venv.create(folder, with_pip=True)
    if subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES]).returncode:
        raise RazorError(f"pip could not install {' '.join(PACKAGES)} into '{folder}'.")
    return python
