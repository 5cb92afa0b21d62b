from __future__ import annotations

from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from razor.data.sources.base import TextSource

CONF = Path(__file__).parents[2] / "conf" / "data"


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_option_gives_a_source_and_the_common_keys(path):
    config = OmegaConf.create({"seed": 11, "data": OmegaConf.load(path)})
    if OmegaConf.is_missing(config.data.source, "path"):
        config.data.source.path = "somewhere"
    assert isinstance(instantiate(config.data.source), TextSource)
    common = {key: config.data[key] for key in config.data if key != "source"}
    assert common.pop("seed") == 11
    assert set(common) == {"sequence_length", "rows_per_batch", "held_out"}
    assert all(isinstance(value, int) and value > 0 for value in common.values())
