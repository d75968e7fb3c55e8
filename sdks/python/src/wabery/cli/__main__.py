"""`python -m wabery.cli`."""

import sys

from wabery.cli import main

sys.exit(main())
