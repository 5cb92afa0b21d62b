"""One of several processes of a run: continues the run that its words name (see `razor.cli.launch`)."""

from __future__ import annotations

import sys

from razor import cli
from razor.cli.launch import only_first_talks


def main() -> int:
    """Return the exit code of the run."""
    only_first_talks()
    return cli.guarded(lambda: cli.resume(sys.argv[1:]), sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
