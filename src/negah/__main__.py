"""`python -m negah` is the `negah` command."""

import sys

from negah.cli.main import main

sys.exit(main())
