"""python -m pyfusekit"""

from __future__ import annotations

import sys

from pyfusekit.cli import main

sys.exit(main())
