"""What a run asks for, held against the kind of its model."""

from __future__ import annotations

from razor import cli
from razor.train.kind import EVALS


def test_every_option_of_evals_is_named() -> None:
    """An error that lists choices lists all of them."""
    named = {option for options in EVALS.values() for option in options.split(", ")}
    assert named == {path.stem for path in (cli.conf_dir() / "evals").glob("*.yaml")}
