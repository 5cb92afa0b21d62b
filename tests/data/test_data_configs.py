from __future__ import annotations

from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from razor.data.images import ImageSource
from razor.data.media import MediaSource
from razor.data.reading import Reading
from razor.data.sources.base import TextSource

CONF = Path(__file__).parents[2] / "conf" / "data"


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_option_gives_a_source_and_the_common_keys(path):
    config = OmegaConf.create({"seed": 11, "model": {}, "data": OmegaConf.load(path)})
    for node in (config.data.source, *(part.source for part in config.data.source.get("parts", {}).values())):
        if OmegaConf.is_missing(node, "path"):
            node.path = "somewhere"
    source = instantiate(config.data.source, _convert_="all")
    common = {key: config.data[key] for key in config.data if key != "source"}
    assert common.pop("seed") == 11
    sizes = ("rows_per_batch", "held_out") + (() if isinstance(source, ImageSource) else ("sequence_length",))
    counts = {key: common.pop(key) for key in sizes}
    assert all(isinstance(value, int) and value > 0 for value in counts.values())
    if isinstance(
        source, ImageSource | MediaSource
    ):  # there is nothing to pack, and nothing to read in several processes
        assert not common
        return
    assert isinstance(source, TextSource)
    made = path.stem == "teacher_made"  # in memory already, and by nobody but the teacher
    assert set(common) == {"pack", "order"} | (set() if made else {"workers", "on_disk"})
    assert Reading(**common) == Reading(on_disk=common.get("on_disk"))
