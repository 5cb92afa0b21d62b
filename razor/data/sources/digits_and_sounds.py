"""Real images and real sound that come inside Python packages, with a question on both.

The images are scikit-learn's handwritten digits (see `digits`); the sound is cut out of recordings that gradio
brings along for its demonstrations: a saxophone, a band, and one named only `recording1`. Each question shows a
digit and lets hear a piece of a recording, and the answer names both. It is no benchmark: it makes a model look and
listen, so that a run with all its towers can be tried without a download.
"""

from __future__ import annotations

import wave
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from razor.data.media import MediaSource, Question
from razor.data.sources.digits import BRIGHTEST
from razor.errors import RazorError

DIGITS = 1797
RECORDINGS = ("sax", "cantina", "recording1")


class DigitsAndSounds(MediaSource):
    """Questions on a digit and a piece of a recording.

    Args:
        questions: how many, at most the 1,797 digits.
        size: height and width of the images, pixels; a multiple of 8.
        seconds: of sound in each; 0: nothing is heard, and only the digit asked for.
        seed: of the pieces of sound and of the held-out choice.

    Raises:
        RazorError: a number out of range.
    """

    def __init__(self, questions: int = 400, size: int = 32, seconds: float = 0.5, seed: int = 0) -> None:
        super().__init__(seed)
        if isinstance(questions, bool) or not isinstance(questions, int) or questions < 1:
            raise RazorError(f"data.source.questions={questions} must be a whole number of at least 1.")
        if questions > DIGITS:
            raise RazorError(
                f"data.source.questions={questions}, and there are {DIGITS} digits to ask about."
            )
        if isinstance(size, bool) or not isinstance(size, int) or size < 8 or size % 8:
            raise RazorError(f"data.source.size={size} must be a multiple of 8 pixels.")
        if not 0 <= seconds <= 3:
            raise RazorError(f"data.source.seconds={seconds} must be 0 to 3.")
        self.count, self.size, self.seconds = questions, size, seconds

    def check(self) -> None:
        """See `DataSource`.

        Raises:
            RazorError: scikit-learn or gradio's recordings are not installed.
        """
        if find_spec("sklearn") is None:
            raise RazorError("data=digits_and_sounds shows digits out of a package: pip install scikit-learn")
        if self.seconds and not all(_file(name).is_file() for name in RECORDINGS):
            raise RazorError(
                "data=digits_and_sounds cuts its sound out of recordings that come with gradio: "
                "pip install 'gradio>=6,<7', or data.source.seconds=0 for images alone."
            )

    def questions(self) -> Iterator[Question]:  # noqa: D102 - see MediaSource
        from sklearn.datasets import load_digits

        found, chance = load_digits(), np.random.default_rng(self.seed)
        recordings = {name: _recording(_file(name)) for name in RECORDINGS} if self.seconds else {}
        for image, digit in list(zip(found.images, found.target, strict=True))[: self.count]:
            shown = [self._shown(image)]
            if not recordings:
                yield Question("Which digit is this?", f"{digit}", shown)
                continue
            name = RECORDINGS[int(chance.integers(len(RECORDINGS)))]
            rate, sound = recordings[name]
            length = int(self.seconds * rate)
            start = int(chance.integers(len(sound) - length + 1))
            heard = [(rate, sound[start : start + length])]
            yield Question("Which digit, and what is heard?", f"{digit}, {name}", shown, heard)

    def _shown(self, image: NDArray[np.float64]) -> NDArray[np.uint8]:
        """[size, size, 3]: each of the 8 x 8 pixels a square, grey as colours that are alike."""
        side = self.size // 8
        grey = np.kron(image / BRIGHTEST * 255, np.ones((side, side))).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)


def _file(name: str) -> Path:
    spec = find_spec("gradio")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else Path("gradio")
    return folder / "media_assets" / "audio" / f"{name}.wav"


def _recording(path: Path) -> tuple[int, NDArray[np.float32]]:
    """(numbers a second, [n] between -1 and 1, channels averaged) of a file with 16 bits a number."""
    with wave.open(str(path), "rb") as opened:
        frames = opened.readframes(opened.getnframes())
        sound = np.frombuffer(frames, dtype="<i2").reshape(-1, opened.getnchannels())
        return opened.getframerate(), (sound.mean(1) / 32768).astype(np.float32)
