"""Facts about the machine and the program, without which a figure means nothing."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

__all__ = ["facts", "load_average"]

_PACKAGES = ("aiocluster", "uvloop", "msgpack", "cloudpickle", "psutil", "numpy")


def load_average() -> list[float]:
    """Processes that wanted to run, over 1, 5 and 15 minutes; empty where the system does not say."""
    try:
        return [round(one, 2) for one in os.getloadavg()]
    except OSError:
        return []


def facts() -> dict[str, Any]:
    """What JSON keeps of the machine; all of it may be published (no names of hosts or users)."""
    return {
        "cpus": os.cpu_count(),
        "cpus_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu": _cpu_model(),
        "memory_bytes": _memory_bytes(),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "optimized": sys.flags.optimize,
        "gc": {"enabled": gc.isenabled(), "thresholds": list(gc.get_threshold())},
        "versions": {name: _version(name) for name in _PACKAGES},
        "load": load_average(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None
