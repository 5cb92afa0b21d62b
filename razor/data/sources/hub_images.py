"""Images of a data set on the Hugging Face hub: a column of images and one of classes.

They are downloaded once into the cache of `datasets` and read from there as they are needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from razor.data.image_files import ReadSource
from razor.data.sources.base import check_limit
from razor.data.sources.hub import check_hub, unreadable
from razor.errors import RazorError
from razor.storage import digest

if TYPE_CHECKING:
    from PIL.Image import Image


class HubImages(ReadSource):
    """Rows of a data set, read with `datasets`.

    Args:
        id: of the data set on the hub, or a local folder that `datasets` reads.
        classes: how many there are.
        size, channels, mean, deviation, seed: see `ReadSource`.
        name: configuration of the set; None: it has one alone.
        split: of the images to train on.
        test_split: of those that are held out; None: any of `split` may be.
        image, label: columns.
        limit: rows of each split, at most.
        revision: branch, tag or commit; None for the newest.

    Raises:
        RazorError: less than two classes, or a limit out of range.
    """

    def __init__(
        self,
        id: str,
        classes: int,
        size: int,
        channels: int = 1,
        mean: float = 0.5,
        deviation: float = 0.25,
        seed: int = 0,
        name: str | None = None,
        split: str = "train",
        test_split: str | None = "test",
        image: str = "image",
        label: str = "label",
        limit: int | None = None,
        revision: str | None = None,
    ) -> None:
        super().__init__(size, channels, seed, mean, deviation)
        check_limit(limit)
        if isinstance(classes, bool) or not isinstance(classes, int) or classes < 2:
            raise RazorError(f"data.source.classes={classes} must be a whole number of at least 2.")
        self.id, self.classes, self.name = id, classes, name
        self.split_name, self.test_split = split, test_split
        self.image, self.label, self.limit, self.revision = image, label, limit, revision

    def check(self) -> None:
        """Raise RazorError if the hub or the data set is out of reach."""
        check_hub(self.id, self.revision, streaming=False)

    def labelled(self) -> tuple[list[int], Callable[[int], Image], str]:
        """See `ReadSource`."""
        parts = [self._rows(name) for name in (self.split_name, self.test_split) if name is not None]
        self.tests = len(parts[1]) if len(parts) == 2 else 0
        names = getattr(parts[0].features[self.label], "names", None)
        self.class_names = tuple(names) if names and len(names) == self.classes else None
        labels = [self._number(label) for part in parts for label in part[self.label]]
        first = len(parts[0])

        def opened(number: int) -> Image:
            part, place = (parts[0], number) if number < first else (parts[1], number - first)
            return self._opened(part, place)

        told = {key: value for key, value in vars(self).items() if key not in ("tests", "class_names")}
        # the rows' own fingerprints, which hold the revision: the hub need not be in reach to ask for it again
        return labels, opened, digest([told, [str(part._fingerprint) for part in parts]])

    def _opened(self, part: Any, place: int) -> Image:
        try:
            found = part[place][self.image]
        except Exception as error:  # whatever PIL or `datasets` makes of bytes that are no image
            reason = " ".join(str(error).split())[:200]
            raise RazorError(
                f"Row {place} of '{self.id}' holds no image that can be read ({reason})."
            ) from error
        if not hasattr(found, "convert"):
            raise RazorError(
                f"Row {place} of '{self.id}' has no image in its column '{self.image}' (data.source.image), but "
                f"{'nothing' if found is None else type(found).__name__}."
            )
        return found

    def _number(self, label: Any) -> int:
        """A class; of a list of one, as some sets have them, that one."""
        only = label[0] if isinstance(label, list) and len(label) == 1 else label
        if isinstance(only, bool) or not isinstance(only, int):
            raise RazorError(
                f"'{self.id}' has {only!r} as a class in its column '{self.label}' (data.source.label): whole "
                "numbers are read."
            )
        return only

    def _rows(self, split: str) -> Any:
        import datasets  # takes a second to import, and only this kind of source needs it

        pinned = {} if self.revision is None else {"revision": self.revision}
        try:
            rows = datasets.load_dataset(self.id, self.name, split=split, **pinned)
        except Exception as error:  # every storage and every format behind the hub raises its own kind
            raise unreadable(f"'{self.id}', split '{split}'", error) from error
        for key in ("image", "label"):
            if getattr(self, key) not in rows.column_names:
                raise RazorError(
                    f"'{self.id}' has no column '{getattr(self, key)}' (data.source.{key}). "
                    f"Choices: {', '.join(sorted(rows.column_names))}."
                )
        return rows if self.limit is None else rows.select(range(min(self.limit, len(rows))))
