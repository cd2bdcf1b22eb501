"""A program that owns a cluster, for tests that end it in every way there is.

    python -m tests.integration.manager_program FOLDER LOAD ENDING [SETTING=SECONDS ...]

It gets the load running, prints one line of JSON with the pids of all processes that it has started, and comes to its end.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from pathlib import Path

import aiocluster
from aiocluster import Cluster

from . import work
from .conftest import Fifos
from .processes import descendants

LOADS = {
    "sleeping": work.announce_and_sleep,
    "spinning": work.announce_and_spin,
    "holding": work.announce_and_hold,
    "ignoring": work.announce_and_ignore_all,
    "async": work.async_announce_and_sleep,
}


async def main(folder: Path, load: str, ending: str, settings: dict[str, float]) -> None:
    async with Cluster.local(n=2, output="quiet", **settings) as cluster:  # type: ignore[arg-type]
        futures = []
        if load != "idle":
            fifos = Fifos(folder)
            paths = [fifos.new(), fifos.new()]
            futures = [cluster.submit(LOADS[load], path) for path in paths]
            for path in paths:
                await fifos.read(path)
        print(json.dumps(descendants(os.getpid())), flush=True)
        match ending:
            case "return":
                return
            case "raise":
                raise RuntimeError("the program failed")
            case "exit":
                sys.exit(3)
            case "exit at once":
                os._exit(4)
            case "forget":  # the loop ends while the cluster is open
                asyncio.get_running_loop().stop()
            case "wait":
                await asyncio.gather(*futures)
                await asyncio.Event().wait()
            case "block":  # the loop stands still, as in a long computation
                threading.Event().wait()


if __name__ == "__main__":
    values = {name: float(value) for name, _, value in (text.partition("=") for text in sys.argv[4:])}
    aiocluster.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], values))
