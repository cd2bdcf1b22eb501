"""How many workers there are, and what each says of itself.

Here:     aiocluster run --workers 3 demo.py
On AWS:   aiocluster job submit demo.py --workers 3 --build --push --register --wait --follow
"""

import asyncio
import os

import aiocluster


def introduce() -> str:
    me = aiocluster.get_worker()
    job = os.environ.get("AWS_BATCH_JOB_ID", "no job of AWS Batch")
    return f"worker {me.id} on {me.node} at {me.host}, process {me.pid}, {job}"


async def main() -> None:
    async with aiocluster.Cluster.from_env() as cluster:
        print(f"NumWorkers = {len(cluster.workers)}", flush=True)
        for said in (await cluster.everywhere(introduce)).values():
            print(said, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
