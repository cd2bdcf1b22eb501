"""Questions that calls on workers ask the manager about the cluster, and their answers as plain data."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiocluster.errors import ProtocolError
from aiocluster.wire.messages import Answer, Ask
from aiocluster.wire.payloads import pack_error

if TYPE_CHECKING:
    from aiocluster.runtime.manager import Manager

__all__ = ["answer", "workers_snapshot"]


def workers_snapshot(manager: Manager) -> list[list[Any]]:
    """Rows of id, node, host and pid of the workers that take calls."""
    return [[record.id, record.node.name, record.node.host, record.pid] for record in manager.core.roster.ready()]


async def answer(manager: Manager, worker_id: int, question: Ask) -> None:
    """Answer one question; what is wrong with it, or goes wrong with it, is the answer."""
    try:
        value = await _find(manager, worker_id, question)
        reply = Answer(question.request, True, value, b"")
    except asyncio.CancelledError:
        raise
    except Exception as error:
        reply = Answer(question.request, False, None, pack_error(error))
    manager.send_to_worker(worker_id, reply)


async def _find(manager: Manager, worker_id: int, question: Ask) -> Any:
    match question.method, question.arguments:
        case "workers", []:
            return workers_snapshot(manager)
        case "worker_count", []:
            return manager.worker_count()
        case "logs", [int(request)]:
            peer = manager.workers.get(worker_id)
            call = None if peer is None else peer.nested.call(request)
            return [] if call is None else await manager.output.lines_of(call)
    raise ProtocolError(f"no such question: {question.method}")
