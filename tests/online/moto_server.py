"""moto's server with the patch of this folder: `python -m tests.online.moto_server`, by a Python that has moto."""

from __future__ import annotations

import sys

from moto.server import main

from tests.online import moto_patch

if __name__ == "__main__":
    moto_patch.apply()
    sys.exit(main())
