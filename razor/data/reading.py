"""How text becomes rows, as a person says it: `data.workers`, `data.pack`, `data.order`, `data.on_disk`."""

from __future__ import annotations

from dataclasses import dataclass

from razor.data.tokenizing import check_workers
from razor.errors import RazorError, did_you_mean

ORDERS = ("shuffled", "bucketed")


@dataclass(frozen=True)
class Reading:
    """Options that every source has.

    Attributes:
        workers: processes that tokenize what is large; None: one a core.
        pack: whether documents share rows.
        order: "shuffled", or "bucketed": rows of similar length together.
        on_disk: whether tokens lie on disk; None: if the source may be large, and for every mix.

    Raises:
        RazorError: a value of a form it cannot have.
    """

    workers: int | None = None
    pack: bool = True
    order: str = "shuffled"
    on_disk: bool | None = None

    def __post_init__(self) -> None:
        check_workers(self.workers)
        if self.order not in ORDERS:
            raise RazorError(f"data.order='{self.order}'.{did_you_mean(str(self.order), ORDERS)}")
        if not isinstance(self.pack, bool):
            raise RazorError(f"data.pack={self.pack} must be true or false.")
        if self.on_disk is not None and not isinstance(self.on_disk, bool):
            raise RazorError(f"data.on_disk={self.on_disk} must be true, false or null.")
        if self.order == "bucketed" and self.pack:
            raise RazorError(
                "data.order=bucketed brings rows of similar length together, but packed rows are all of one "
                "length: add data.pack=false, or leave it out."
            )

    @property
    def bucketed(self) -> bool:
        """Whether rows of similar length come together."""
        return self.order == "bucketed"
