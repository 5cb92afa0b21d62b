"""Do something once another module has been imported, without importing it.

`import razor` makes Transformers load packed folders, and must not cost the seconds that importing Transformers
takes. So it waits: a finder stands first in the line of those who are asked for modules, answers for one name
alone, lets the others find it, and runs a function when the module is there.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def when_imported(name: str, call: Callable[[], None]) -> None:
    """Call once module `name` is imported; at once if it is."""
    if name in sys.modules:
        call()
    elif not any(isinstance(finder, _Waiting) and finder.name == name for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting(name, call))


class _Waiting(MetaPathFinder):
    """Finds one module, by asking the others."""

    def __init__(self, name: str, call: Callable[[], None]) -> None:
        self.name, self.call = name, call

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Calling(spec.loader, self.call)
        return spec


class _Calling(Loader):
    """Runs a module as its own loader does, and a function after it."""

    def __init__(self, own: Loader, call: Callable[[], None]) -> None:
        self.own, self.call = own, call

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.own  # from here on nobody can tell
        self.own.exec_module(module)
        self.call()
