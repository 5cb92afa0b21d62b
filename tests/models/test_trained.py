"""Teachers that Razor trains itself: what is kept of them, and when one is not taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from razor import cli
from razor.errors import RazorError
from razor.models import TrainedModel
from razor.models.trained import TAUGHT, WEIGHTS

DATA = {"train": "a", "held_out": "b"}


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainedModel:
    """A kept teacher, whose weights nobody reads."""
    monkeypatch.setenv("RAZOR_CACHE", str(tmp_path / "cache"))
    for name in ("config.json", WEIGHTS):
        (tmp_path / name).write_text(name)
    found: TrainedModel = cli.build(cli.composed("size", ["model=tiny_vit"]).model.source)
    found.data = "images"
    with pytest.raises(RazorError, match=r"model=tiny_vit is not trained yet on this data"):
        found.prepare()
    found.keep(tmp_path, DATA)
    return found


def test_other_images_are_other_images(source: TrainedModel) -> None:
    source.prepare()
    source.check_data(dict(DATA))
    for other in (DATA | {"held_out": "c"}, DATA | {"train": "c"}):
        with pytest.raises(RazorError, match="not those that model=tiny_vit was trained and scored on"):
            source.check_data(other)
    (source.folder / TAUGHT).unlink()  # as teachers were kept before
    source.prepare()
    source.check_data({"train": "c", "held_out": "c"})


def test_damage_is_told(source: TrainedModel) -> None:
    before = source.fingerprint()
    (source.folder / WEIGHTS).write_text("other")
    for asked in (source.prepare, source.fingerprint):
        with pytest.raises(RazorError, match=r"model.safetensors' is damaged: remove"):
            asked()
    (source.folder / WEIGHTS).write_text(WEIGHTS)
    assert source.fingerprint() == before
    (source.folder / TAUGHT).write_text("{")
    with pytest.raises(RazorError, match=r"taught.json' is damaged"):
        source.prepare()
