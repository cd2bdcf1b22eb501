"""What an installed aiocluster must be able to do: run as a script outside the checkout, with nothing else installed."""

from __future__ import annotations

import asyncio
import math
import os
import sys
from collections.abc import Awaitable
from pathlib import Path

import aiocluster
from aiocluster import Cluster, RemoteError, WorkerLost
from aiocluster.cloud.template import TEMPLATES, template_path


def fail() -> None:
    raise LookupError("as it should")


async def double(x: int) -> int:
    await asyncio.sleep(0)
    return 2 * x


async def error_of(call: Awaitable[object]) -> Exception:
    try:
        await call
    except Exception as error:
        return error
    raise AssertionError("a call that must fail had a result")


async def main() -> None:
    home = Path(aiocluster.__file__).parent
    assert Path(sys.prefix) in home.parents, f"{home} is not the installed aiocluster"
    assert (home / "py.typed").exists()
    assert all(home in template_path(name).parents for name in TEMPLATES)
    async with Cluster.local(n=2) as cluster:
        assert await cluster.submit(math.factorial, 20) == 2432902008176640000
        assert await cluster.submit(double, 21) == 42
        assert await cluster.map(lambda x: x * x, range(1000)) == [x * x for x in range(1000)]
        error = await error_of(cluster.submit(fail))
        assert isinstance(error, LookupError), error
        assert "in fail" in str(error.__cause__)
        error = await error_of(cluster.submit(sys.exit, 1))
        assert isinstance(error, RemoteError), error
        assert error.type_name.endswith("SystemExit")
        error = await error_of(cluster.submit(os._exit, 3))
        assert isinstance(error, WorkerLost), error
        assert error.maybe_executed
    print(f"aiocluster {aiocluster.__version__} works from {home}")


if __name__ == "__main__":
    aiocluster.run(main())
