"""A dashboard is no reason to lose a run.

Services go down, tokens expire, disks of others fill up. `Forgiving` stands in front of a logger: the first time
it fails is said in one line, and the run goes on without it. At the end it gets one more chance, because what is
published then is what people look for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from razor.errors import RazorError
from razor.evals.report import Report

T = TypeVar("T")


class Forgiving(Logger):
    """Another logger, whose failures do not count.

    Args:
        option: what it is called in `logger=`.
        inner: the logger; it may have `publish(report, folder)` and `close(status)`.
    """

    def __init__(self, option: str, inner: Logger) -> None:
        super().__init__()
        self.option, self.failed = option, False
        self.inner: Any = inner

    def attempt(self, action: Callable[[], T]) -> T | None:
        """Do it; None, and silence from then on, if it fails.

        Raises:
            RazorError: what a person asked for cannot be; that is theirs to know.
        """
        if self.failed:
            return None
        try:
            return action()
        except RazorError:
            raise
        except Exception as error:  # whatever a service and its client may throw
            self.failed = True
            reason = without_secrets((str(error).strip().splitlines() or [""])[0])[:200]
            print(
                f"logger={self.option} failed and is left alone from here on ({type(error).__name__}: {reason}).",
                flush=True,
            )
            return None

    @property
    def experiment(self) -> Any:
        """The inner logger's handle; None once it has failed."""
        return self.attempt(lambda: self.inner.experiment)

    @property
    def name(self) -> str | None:
        """See Lightning's Logger."""
        return self.attempt(lambda: self.inner.name)

    @property
    def version(self) -> int | str | None:
        """See Lightning's Logger."""
        return self.attempt(lambda: self.inner.version)

    @property
    def save_dir(self) -> str | None:
        """See Lightning's Logger."""
        return self.attempt(lambda: self.inner.save_dir)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Numbers of a step."""
        self.attempt(lambda: self.inner.log_metrics(dict(metrics), step))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """See Lightning's Logger."""
        self.attempt(lambda: self.inner.log_hyperparams(params, *args, **kwargs))

    def save(self) -> None:
        """See Lightning's Logger."""
        self.attempt(self.inner.save)

    def finalize(self, status: str) -> None:
        """Training is over; the run is not (see `close`)."""

    @rank_zero_only
    def publish(self, report: Report, folder: Path) -> None:
        """Table, figures and files of a finished run, as far as the logger can."""
        self.failed = False
        if hasattr(self.inner, "publish"):
            self.attempt(lambda: self.inner.publish(report, folder))

    @rank_zero_only
    def close(self, status: str) -> None:
        """The run is over: "success" or "failed"."""
        self.attempt(lambda: getattr(self.inner, "close", self.inner.finalize)(status))


def without_secrets(text: str) -> str:
    """The text with user and password of every address in it masked."""
    return re.sub(r"//[^/@\s]+@", "//***@", text)
