"""`python -m razor`."""

import sys

from razor.cli import main

sys.exit(main())
