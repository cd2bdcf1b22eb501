"""moto's server with the patch of this folder: `python -m tests.online.moto_server`, by a Python that has moto.

When it is ended by SIGTERM or SIGINT, so are the containers of its jobs.
"""

from __future__ import annotations

import atexit
import sys

from moto.server import main

from tests.online import moto_patch

if __name__ == "__main__":
    moto_patch.apply()
    atexit.register(moto_patch.end_all)
    sys.exit(main())
