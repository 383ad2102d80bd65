"""``python -m vismem.cli`` is ``vismem``."""

import sys

from vismem.cli import main

sys.exit(main())
