"""Both sides multiply alike.

On a CPU without instructions for bfloat16, `import razor` makes torch's 16-bit products fast for its own process
(`razor/half_products.py`). The peer's process imports no Razor, so it would be compared with torch's slow loops and
not with another way to train. This gives it the same products; elsewhere it does nothing.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "razor" / "half_products.py"


def same_products() -> None:
    """Install them in this process, if torch's own are slow here."""
    spec = importlib.util.spec_from_file_location("half_products", SOURCE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.install()
