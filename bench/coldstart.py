"""The program whose start is timed: as small as a user's first one, so it imports aiocluster and nothing of `bench`."""

from __future__ import annotations

import os
import sys

import aiocluster


async def main(workers: int) -> None:
    async with aiocluster.Cluster.local(n=workers, output="quiet") as cluster:
        if len(cluster.workers) != workers:
            raise RuntimeError(f"{len(cluster.workers)} of {workers} workers have joined")
        pid = await cluster.submit(os.getpid)
        if pid not in {worker.pid for worker in cluster.workers.values()}:
            raise RuntimeError(f"the call ran in process {pid}, which is no worker")
        print("first result", flush=True)


if __name__ == "__main__":
    aiocluster.run(main(int(sys.argv[1])))
