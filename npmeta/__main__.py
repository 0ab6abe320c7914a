"""``python -m npmeta``."""

import sys

from npmeta.cli import main

sys.exit(main())
