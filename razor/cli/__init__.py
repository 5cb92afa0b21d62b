"""The commands: `razor <verb> key=value ...`, and the main job behind `train.py`.

This is the one room that knows Hydra. A verb's config is composed from `conf/<verb>.yaml` and the
overrides, its `_target_`s are instantiated, and plain objects go on to the library. Whatever a person got
wrong, a name, a key, a value, ends in one line on stderr and exit code 2; `debug=true` shows the traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from razor.cli.config import build, composed, conf_dir, model_source, quantization
from razor.cli.guard import BAD_INPUT, INTERRUPTED, explain, guarded
from razor.cli.job import hydra_train, resume, train
from razor.cli.verbs import VERBS
from razor.errors import RazorError, did_you_mean

__all__ = [
    "BAD_INPUT",
    "INTERRUPTED",
    "VERBS",
    "build",
    "composed",
    "conf_dir",
    "explain",
    "guarded",
    "hydra_train",
    "main",
    "model_source",
    "quantization",
    "resume",
    "train",
]


def main(argv: Sequence[str] | None = None) -> int:
    """The console script."""
    os.environ["HYDRA_FULL_ERROR"] = "1"
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print("razor <verb> key=value ...\n\nVerbs:")
        for name, verb in VERBS.items():
            print(f"  {name:13s} {(verb.__doc__ or '').splitlines()[0]}")
        print("\nOptions of a verb: conf/<verb>.yaml. The main job: python train.py (conf/train.yaml).")
        return 0

    def job() -> int:
        verb = words[0].replace("-", "_")
        if verb not in VERBS:
            raise RazorError(f"Unknown verb '{words[0]}'.{did_you_mean(words[0], VERBS)}")
        if {"-h", "--help"} & set(words):
            options = (conf_dir() / f"{verb}.yaml").read_text(encoding="utf-8")
            print(f"{VERBS[verb].__doc__}\n\n{options}", end="")
            return 0
        return VERBS[verb](words[1:])

    return guarded(job, words)
