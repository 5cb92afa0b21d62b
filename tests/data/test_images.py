"""Images as rows: the split, the order of a run, and what does not fit a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from razor import cli
from razor.data.images import ImageSource
from razor.data.reading import Reading
from razor.data.rows import Wanted
from razor.data.sources.digits import Digits
from razor.data.steps import StepBatches
from razor.errors import RazorError
from razor.models import config_from


class Few(ImageSource):
    """Ten images, each of one brightness."""

    classes, mean, deviation = 2, 0.5, 0.25

    def images(self) -> tuple[torch.Tensor, torch.Tensor]:
        shades = torch.arange(10) / 10
        return shades.view(10, 1, 1).expand(10, 4, 4), torch.arange(10) % 2


def wanted(held_out: int) -> Wanted:
    return Wanted(None, held_out, 0, 1, None, None, Reading())


def test_held_out_images_are_no_training_images() -> None:
    corpus = Few(4).corpus(wanted(3))
    shades = [
        sorted(round(float(x), 4) for x in rows.pixels[:, 0, 0, 0])
        for rows in (corpus.train, corpus.held_out)
    ]
    assert len(shades[0]) == 7 and len(shades[1]) == 3 and not set(shades[0]) & set(shades[1])
    assert sorted(shades[0] + shades[1]) == pytest.approx([(n / 10 - 0.5) / 0.25 for n in range(10)])
    again, other = Few(4).corpus(wanted(3)), Few(4, seed=1).corpus(wanted(3))
    assert corpus.train.digest() == again.train.digest() != other.train.digest()


def test_sizes_and_colours() -> None:
    rows = Few(8, channels=3).corpus(wanted(1)).train
    assert rows.pixels.shape == (9, 3, 8, 8) and torch.equal(rows.pixels[:, 0], rows.pixels[:, 2])
    with pytest.raises(RazorError, match=r"data.held_out=10 of 10 images leaves none"):
        Few(4).corpus(wanted(10))
    for words in ({"size": 0}, {"size": 8, "channels": 2}, {"size": 8, "seed": -1}, {"size": 8, "seed": "x"}):
        with pytest.raises(RazorError, match=r"data.source.(size|channels|seed)="):
            Few(**words)


@pytest.mark.parametrize(
    ("pixels", "classes", "said"),
    [
        (torch.zeros(4, 4, 4), torch.tensor([0, 1, 2, 1]), r"classes from 0 to 2 .*, and there are 2"),
        (torch.zeros(4, 4, 4), torch.tensor([0, 1, -1, 1]), r"classes from -1 to 1"),
        (torch.zeros(4, 4, 4), torch.zeros(4), r"classes from 0 to 0 \(torch.float32\)"),
        (torch.zeros(4, 3, 4, 4), torch.zeros(4).long(), r"images of 3 channels; data.source.channels=1"),
        (torch.zeros(4, 4, 4, dtype=torch.uint8), torch.zeros(4).long(), r"images of torch.uint8"),
        (torch.full((4, 4, 4), 255.0), torch.zeros(4).long(), r"pixels from 255 to 255"),
        (torch.full((4, 4, 4), torch.nan), torch.zeros(4).long(), r"pixels from nan to nan"),
        (torch.zeros(4, 4), torch.zeros(4).long(), r"gives pixels \[4, 1, 4\] and classes \[4\]"),
        (torch.zeros(4, 4, 4), torch.zeros(3).long(), r"and classes \[3\]"),
    ],
)
def test_images_of_ones_own_that_will_not_do(pixels: torch.Tensor, classes: torch.Tensor, said: str) -> None:
    class Own(Few):
        def images(self) -> tuple[torch.Tensor, torch.Tensor]:
            return pixels, classes

    with pytest.raises(RazorError, match=said):
        Own(4).corpus(wanted(1))


def test_digits_are_normalized() -> None:
    corpus = Digits(8).corpus(wanted(360))
    pixels = torch.cat([corpus.train.pixels, corpus.held_out.pixels])
    assert len(pixels) == 1797 and corpus.train.tokens == 1437
    assert float(pixels.mean()) == pytest.approx(0, abs=0.01) and float(pixels.std()) == pytest.approx(
        1, abs=0.01
    )
    assert torch.bincount(corpus.held_out.classes, minlength=10).min() > 20


def test_micro_batch_i_is_a_function_of_seed_and_i() -> None:
    rows = Few(4).corpus(wanted(3)).train
    whole = StepBatches(rows, 6, rows_per_batch=2, accumulate=2, seed=5)
    again = StepBatches(rows, 6, rows_per_batch=2, accumulate=2, seed=5)
    for index in (11, 3):  # a resumed run begins anywhere
        assert torch.equal(whole[index].pixel_values, again[index].pixel_values)
        assert torch.equal(whole[index].documents, torch.tensor([[0], [1]]))
    assert whole[0].share == 1.0
    assert not torch.equal(whole[0].pixel_values, StepBatches(rows, 6, 2, 2, seed=6)[0].pixel_values)
    of_one, of_two = whole[1], StepBatches(rows, 6, 2, 1, 5, rank=1, world=2)[0]
    assert torch.equal(of_one.pixel_values, of_two.pixel_values)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"image_size": 16}, "data.source.size=8, but this vit reads images of 16"),
        ({"patch_size": 3}, "data.source.size=8 is no multiple of the patches of this vit, 3 pixels wide"),
        ({"num_channels": 3}, "data.source.channels=1, but this vit reads 3"),
        ({"num_labels": 7}, "this vit tells 7 classes apart, the data has 10"),
    ],
)
def test_images_that_do_not_fit_the_model(changed: dict[str, Any], said: str) -> None:
    fits = {"model_type": "vit", "image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10}
    Digits(8).check_rows(config_from("vit", fits), 1, None)
    with pytest.raises(RazorError, match=said):
        Digits(8).check_rows(config_from("vit", fits | changed), 1, None)


def test_images_are_brought_to_what_the_model_reads() -> None:
    config = cli.composed("train", ["data=digits", "model=tiny_vit"])
    assert cli.build(config.data.source).shape == (1, 8, 8)
    config = cli.composed("train", ["data=digits", "model=tiny_vit", "model.architecture.num_channels=3"])
    assert cli.build(config.data.source).shape == (3, 8, 8)
