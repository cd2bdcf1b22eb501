"""moto's server with the patch of this folder: `python -m tests.online.moto_server`, by a Python that has moto.

When it is ended by SIGTERM or SIGINT, so are the containers of its jobs.
"""

from __future__ import annotations

import atexit
import signal
import sys

from moto.server import main

from tests.online import moto_patch


def end() -> None:
    """The containers of all jobs are gone; no second signal comes between."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    moto_patch.end_all()


if __name__ == "__main__":
    moto_patch.apply()
    atexit.register(end)
    sys.exit(main())
