"""Both ends on different CPUs, and everything as before afterwards."""

from __future__ import annotations

import asyncio
import os
import sys

import pytest

from bench.children import child
from bench.placement import apart

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="CPU affinity is set on Linux only")


def test_this_process_and_its_children_share_no_cpu_while_apart() -> None:
    async def main() -> None:
        before = os.sched_getaffinity(0)
        async with child(["-c", "print('ready', flush=True); input()"]) as process:
            assert process.stdout is not None
            await process.stdout.readline()
            with apart() as is_apart:
                assert is_apart is (len(before) > 1)
                ours, theirs = os.sched_getaffinity(0), os.sched_getaffinity(process.pid)
                assert not is_apart or (len(ours) == 1 and ours | theirs == before and not ours & theirs)
            assert os.sched_getaffinity(0) == before == os.sched_getaffinity(process.pid)

    asyncio.run(main())


def test_nothing_is_changed_where_there_is_one_cpu_only() -> None:
    before = os.sched_getaffinity(0)
    one = {min(before)}
    os.sched_setaffinity(0, one)
    try:
        with apart() as is_apart:
            assert not is_apart
            assert os.sched_getaffinity(0) == one
    finally:
        os.sched_setaffinity(0, before)
