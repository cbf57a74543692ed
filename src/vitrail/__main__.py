"""`python -m vitrail` is the `vitrail` command."""

import sys

from vitrail_cli import main

sys.exit(main())
