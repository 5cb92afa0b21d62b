from __future__ import annotations

import pytest

from razor.data.temperature import Ramp, read_temperature
from razor.errors import RazorError


def test_a_ramp_is_linear_then_flat():
    ramp = read_temperature({"from": 1.5, "to": 0.5, "tokens": 4})
    assert ramp == Ramp(1.5, 0.5, 4)
    assert [ramp.at(place) for place in range(6)] == [1.5, 1.25, 1.0, 0.75, 0.5, 0.5]


def test_numbers_stay_what_they_are():
    assert read_temperature(0.7) == 0.7 and read_temperature(1) == 1


@pytest.mark.parametrize(
    "given, text",
    [
        (0, "data.source.temperature=0 "),
        (-1.0, "data.source.temperature=-1.0 "),
        (float("nan"), "data.source.temperature=nan "),
        (True, "data.source.temperature=True "),
        ("hot", "data.source.temperature=hot "),
        ({"from": 1.0, "to": 0.5}, "keys"),
        ({"from": 1.0, "to": 0.5, "tokens": 4, "over": 1}, "keys"),
        ({"from": 0, "to": 0.5, "tokens": 4}, "temperature.from=0 "),
        ({"from": 1.0, "to": -0.5, "tokens": 4}, "temperature.to=-0.5 "),
        ({"from": 1.0, "to": 0.5, "tokens": 0}, "temperature.tokens=0 "),
        ({"from": 1.0, "to": 0.5, "tokens": 1.5}, "temperature.tokens=1.5 "),
    ],
)
def test_what_is_no_temperature(given, text):
    with pytest.raises(RazorError) as caught:
        read_temperature(given)
    assert text in str(caught.value) and "\n" not in str(caught.value)
