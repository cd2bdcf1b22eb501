"""The table of workloads, in the order in which they run."""

from __future__ import annotations

from bench import core
from bench.model import Workload
from bench.workloads import arrays, calls, imbalance, processes, waiting

__all__ = ["TABLE"]

TABLE: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        calls.ROUNDTRIP,
        calls.SUBMIT20K,
        calls.MAP100K,
        arrays.ARRAY100,
        arrays.ARRAYS200,
        waiting.WAITING,
        imbalance.IMBALANCE,
        core.CORE1000,
        processes.IDLE,
        processes.COLDSTART2,
        processes.COLDSTART8,
        processes.RSS,
    )
}
