"""A question with images and sound, as the tokens and numbers that a model reads.

The tokenizer's chat template says where an image or a recording stands and puts one token there. Its tower makes
many vectors of it, so that token is repeated as often: for an image as its grid of patches, merged, tells; for a
recording as the audio tower itself tells from the number of its frames. What the answer's tokens are follows from
tokenizing the question alone as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from razor.distill.media import AUDIO, IMAGE
from razor.errors import RazorError
from razor.quant.anatomy import towers_of

if TYPE_CHECKING:
    from razor.models.source import ModelSource


@dataclass(frozen=True)
class MediaText:
    """One question and its answer, read.

    Attributes:
        tokens: [T] int64.
        response: [T] bool, the answer's.
        kinds: [T] int64, what stands at each token (see `MediaBatch`).
        media: what a model is called with besides, by name.
    """

    tokens: Tensor
    response: Tensor
    kinds: Tensor
    media: dict[str, Tensor]


class MediaReader:
    """Reads for one model.

    Args:
        source: of the model, whose tokenizer, processors and skeleton are asked for.

    Raises:
        RazorError: its tokenizer has no chat template, or its towers cannot be asked.
    """

    def __init__(self, source: ModelSource) -> None:
        self.name, self.tokenizer, self.processors = source.name, source.tokenizer(), source.processors()
        model = source.skeleton()
        self._config, self._towers = model.config, towers_of(model)
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise RazorError(f"The tokenizer of model={source.name} has no chat template to put images into.")

    @property
    def rate(self) -> int:
        """Numbers a second that it hears.

        Raises:
            RazorError: it hears nothing.
        """
        if self.processors.audio is None:
            raise RazorError(f"model={self.name} hears nothing, and the data has sound.")
        return int(self.processors.audio.sampling_rate)

    def __call__(self, question: str, answer: str, images: Sequence[Any], sounds: Sequence[Any]) -> MediaText:
        """Read one question.

        Args:
            question: text after images and sounds.
            answer: what is to be said.
            images: [height, width, 3] uint8 each.
            sounds: [n] fp32 each, at `rate`.

        Raises:
            RazorError: the model has no eyes or ears, or its template leaves them out.
        """
        parts = [{"type": "image"}] * len(images) + [{"type": "audio"}] * len(sounds)
        asked = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
        prompt = self._tokens(asked, True)
        whole = self._tokens([*asked, {"role": "assistant", "content": answer}], False)
        if whole[: len(prompt)] != prompt:
            raise RazorError(
                f"The chat template of model={self.name} changes a question once it is answered."
            )
        media: dict[str, Tensor] = {}
        repeats = {IMAGE: self._images(images, media), AUDIO: self._sounds(sounds, media)}
        tokens, kinds = self._repeated(whole, repeats)
        response = torch.zeros(len(tokens), dtype=torch.bool)
        response[len(tokens) - (len(whole) - len(prompt)) :] = True
        return MediaText(torch.tensor(tokens), response, torch.tensor(kinds), media)

    def _tokens(self, messages: list[dict[str, Any]], prompt: bool) -> list[int]:
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)  # type: ignore[union-attr]
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)  # type: ignore[misc]

    def _images(self, images: Sequence[Any], media: dict[str, Tensor]) -> list[int]:
        """Tokens of each image; what the model is given goes into `media`."""
        if not images:
            return []
        processor = self.processors.image
        if processor is None:
            raise RazorError(f"model={self.name} sees nothing, and the data has images.")
        found = processor(images=list(images), return_tensors="pt")
        if "image_grid_thw" not in found or not hasattr(processor, "merge_size"):
            raise RazorError(
                f"{type(processor).__name__} does not tell the grid of an image's patches (image_grid_thw), by "
                "which Razor counts its tokens."
            )
        media |= {name: found[name] for name in ("pixel_values", "image_grid_thw")}
        return (found["image_grid_thw"].prod(1) // processor.merge_size**2).tolist()

    def _sounds(self, sounds: Sequence[Any], media: dict[str, Tensor]) -> list[int]:
        if not sounds:
            return []
        extractor, rate = self.processors.audio, self.rate
        lengths = getattr(self._towers.get("audio"), "_get_feat_extract_output_lengths", None)
        if lengths is None:
            raise RazorError(f"The audio tower of model={self.name} does not tell how many vectors it makes.")
        for sound in sounds:
            _check_length(len(sound), extractor)
        found = extractor(
            list(sounds), sampling_rate=rate, padding=True, return_attention_mask=True, return_tensors="pt"
        )
        mask = found["attention_mask"]
        media |= {"input_features": found["input_features"], "feature_attention_mask": mask}
        counts: list[int] = lengths(mask.sum(1))[1].tolist()
        if min(counts) < 1:
            shortest = min(len(sound) for sound in sounds)
            raise RazorError(
                f"A sound of {shortest} numbers ({shortest / rate:.3g} s) is too short for model={self.name}, "
                "whose audio tower makes less than one vector of it: give longer ones."
            )
        return counts

    def _repeated(self, tokens: list[int], repeats: dict[int, list[int]]) -> tuple[list[int], list[int]]:
        """Tokens with those of images and sounds repeated, and what stands at each."""
        marks = {getattr(self._config, "image_token_id", None): IMAGE}
        marks |= {getattr(self._config, "audio_token_id", None): AUDIO}
        left = {kind: list(counts) for kind, counts in repeats.items()}
        found: list[int] = []
        kinds: list[int] = []
        for token in tokens:
            kind = marks.get(token, 0)
            if kind and not left[kind]:
                raise RazorError(
                    f"A question to model={self.name} holds the mark of an image or a sound itself."
                )
            count = left[kind].pop(0) if kind else 1
            found += [token] * count
            kinds += [kind] * count
        if any(left.values()):
            raise RazorError(
                f"The chat template of model={self.name} has no place for what a question shows or lets hear."
            )
        return found, kinds


def _check_length(count: int, extractor: Any) -> None:
    """Raise RazorError for a sound that a feature extractor would cut off, or cannot take."""
    rate, longest = int(extractor.sampling_rate), getattr(extractor, "n_samples", None)
    if longest is not None and count > longest:
        raise RazorError(
            f"A sound of {count / rate:.3g} s is longer than the {longest / rate:g} s that "
            f"{type(extractor).__name__} takes, which would cut it off: give shorter ones."
        )
    # a frame reaches half of its width beyond both ends, where it sees the sound reflected
    reflected = getattr(extractor, "n_fft", 0) // 2
    if count <= reflected:
        raise RazorError(
            f"A sound of {count} numbers is too short for {type(extractor).__name__}, which needs more than "
            f"{reflected} ({reflected / rate:.3g} s): give longer ones."
        )
