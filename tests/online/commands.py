"""The command `aiocluster` as a person runs it."""

from __future__ import annotations

import asyncio
import os
import sys


async def aiocluster(*arguments: str) -> tuple[int, str]:
    """The command's exit code and what it printed."""
    command = [sys.executable, "-m", "aiocluster.cli.main", *arguments]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=dict(os.environ))
    printed, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, printed.decode()
