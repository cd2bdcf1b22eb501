"""Links between a listener and diallers: what is sent arrives once and in order, whatever happens to the connections."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from aiocluster.errors import ProtocolError
from aiocluster.net.address import UnixAddress
from aiocluster.net.errors import LinkLost, LinkRefused, ManagerGone
from aiocluster.net.link import Link
from aiocluster.wire.frames import FrameLimits
from aiocluster.wire.messages import Ack, Beat, Refused, Welcome

from .harness import (
    Proxy,
    Recorder,
    bulk,
    cut,
    is_protocol_error,
    joined,
    linked,
    managing,
    on_both_loops,
    seeded,
    until,
    worker_hello,
)

MIB = 2**20


@pytest.fixture(params=["unix", "tcp", "tcp+plain"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"unix:{tmp_path}/manager" if request.param == "unix" else f"{request.param}://127.0.0.1:0"


@pytest.fixture
def unix(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/manager"


# --- sending and receiving -----------------------------------------------------------------------------------------------


@on_both_loops
async def test_frames_travel_both_ways(address: str) -> None:
    async with managing(address) as manager, joined(manager.address) as worker:
        here, there = linked(worker), linked(manager.recorders[1])
        assert here.welcome == Welcome(0, {"worker": 1})
        here.send(Beat(1))
        here.send(bulk(2), [b"there"])
        await manager.recorders[1].until_numbers(2)
        there.send(bulk(3), [bytearray(b"back")])
        await worker.until_numbers(1)
        assert bytes(manager.recorders[1].frames[1].buffers[0]) == b"there"
        assert bytes(worker.frames[0].buffers[0]) == b"back"
        assert worker.story == manager.recorders[1].story == ["opened"]


@on_both_loops
async def test_frames_of_one_tick_are_one_write_and_arrive_together(unix: str) -> None:
    async with managing(unix) as manager, joined(unix) as worker:
        here = linked(worker)
        connection = here._connection
        assert connection is not None
        writes: list[int] = []
        write = connection._transport.write

        class Counting:
            def __getattr__(self, name: str) -> object:
                return getattr(transport, name)

            def write(self, data: bytes) -> None:
                writes.append(len(data))
                write(data)

        transport, connection._transport = connection._transport, Counting()  # type: ignore[assignment]
        for number in range(1000):
            here.send(Beat(number))
        assert not writes, "nothing is written before the tick ends"
        await asyncio.sleep(0)
        assert len(writes) == 1
        await manager.recorders[1].until_numbers(1000)
        assert len(manager.recorders[1].batches) == 1


@on_both_loops
async def test_flush_writes_what_was_sent_before_the_tick_ends(unix: str) -> None:
    async with managing(unix) as manager, joined(unix) as worker:
        linked(worker).flush()
        linked(worker).send(Beat(1))
        assert linked(worker).unsent_bytes > 0
        linked(worker).flush()
        assert linked(worker).unsent_bytes == 0
        await manager.recorders[1].until_numbers(1)
        linked(worker).close()
        await worker.until_said("closed")
        linked(worker).flush()


@on_both_loops
async def test_ten_thousand_small_frames_of_one_tick_arrive_in_order(address: str) -> None:
    async with managing(address) as manager, joined(manager.address) as worker:
        for number in range(10_000):
            linked(worker).send(Beat(number))
        await manager.recorders[1].until_numbers(10_000)
        assert manager.recorders[1].numbers == list(range(10_000))


@on_both_loops
async def test_large_buffers_travel_both_ways_at_once(address: str) -> None:
    data = os.urandom(MIB) * 64
    async with managing(address) as manager, joined(manager.address) as worker:
        linked(worker).send(bulk(1), [data])
        linked(manager.recorders[1]).send(bulk(2), [data])
        await manager.recorders[1].until_numbers(1)
        await worker.until_numbers(1)
        for recorder in (worker, manager.recorders[1]):
            assert recorder.frames[0].buffers[0] == data
            await recorder.until(lambda recorder=recorder: linked(recorder).unacked_bytes == 0)  # type: ignore[misc]


@on_both_loops
async def test_frames_that_follow_the_welcome_closely_come_after_the_link_is_there(address: str) -> None:
    def prepare(recorder: Recorder) -> None:
        def opened(link: Link) -> None:
            Recorder.link_opened(recorder, link)
            for number in range(5):
                link.send(Beat(number))

        recorder.link_opened = opened  # type: ignore[method-assign]

    async with managing(address) as manager:
        manager.prepare = prepare
        async with joined(manager.address) as worker:
            assert worker.numbers == []
            await worker.until_numbers(5)
            assert worker.numbers == [0, 1, 2, 3, 4]


@on_both_loops
async def test_quiet_peer_is_acknowledged_by_the_timer(unix: str) -> None:
    async with managing(unix) as manager, joined(unix) as worker:
        linked(worker).send(Beat(1))
        await manager.recorders[1].until_numbers(1)
        assert linked(worker).unacked_bytes > 0
        await until(lambda: linked(worker).unacked_bytes == 0)


@on_both_loops
async def test_message_that_cannot_be_encoded_is_the_senders_error_and_nobody_elses(unix: str) -> None:
    async with managing(unix) as manager, joined(unix) as worker:
        with pytest.raises(ValueError, match="buffers"):
            linked(worker).send(bulk(1), [])
        linked(worker).send(Beat(2))
        await manager.recorders[1].until_numbers(1)
        assert manager.recorders[1].numbers == [2]


# --- flow control --------------------------------------------------------------------------------------------------------


@on_both_loops
@pytest.mark.parametrize("reader", ["manager", "worker"])
async def test_slow_reader_stops_its_sender_and_memory_stays_bounded(address: str, reader: str) -> None:
    async with (
        managing(address, unacked_limit_bytes=4 * MIB) as manager,
        joined(manager.address, unacked_limit_bytes=4 * MIB) as worker,
    ):
        ends = {"manager": manager.recorders[1], "worker": worker}
        slow = ends.pop(reader)
        (fast,) = ends.values()
        slow.keep_frames = False
        linked(slow).pause_reading()
        body = bytes(64 * 1024)
        total, sent, most = 1000, 0, 0
        while sent < total:
            while linked(fast).writable and sent < total:
                linked(fast).send(bulk(sent), [body])
                sent += 1
                most = max(most, linked(fast).unacked_bytes)
                await asyncio.sleep(0)
            if not linked(fast).writable:
                linked(slow).resume_reading()
                await fast.until(lambda: linked(fast).writable)
                linked(slow).pause_reading()
        linked(slow).resume_reading()
        await slow.until_numbers(total)
        assert slow.numbers == list(range(total))
        assert "unwritable" in fast.story
        assert most <= 5 * MIB


@on_both_loops
async def test_link_whose_peer_does_not_read_says_so_before_its_limit(address: str) -> None:
    async with managing(address) as manager, joined(manager.address) as worker:
        linked(manager.recorders[1]).pause_reading()
        linked(worker).send(bulk(1), [bytes(32 * MIB)])
        await worker.until_said("unwritable")
        assert linked(worker).unsent_bytes > 16 * MIB, "the transport is not given what it cannot write"
        linked(manager.recorders[1]).resume_reading()
        await worker.until_said("writable")
        await manager.recorders[1].until_numbers(1)


@on_both_loops
async def test_paused_reading_stays_paused_over_a_resumption(address: str) -> None:
    async with managing(address) as manager, joined(manager.address) as worker:
        there = manager.recorders[1]
        linked(there).pause_reading()
        cut(linked(worker))
        await until(lambda: worker.story.count("resumed") == 1 and there.story.count("resumed") >= 1)
        linked(worker).send(Beat(1))
        linked(there).send(Beat(2))
        await worker.until_numbers(1)
        assert there.numbers == []
        linked(there).resume_reading()
        await there.until_numbers(1)


# --- breaks --------------------------------------------------------------------------------------------------------------


@on_both_loops
@pytest.mark.parametrize("side", ["manager", "worker"])
async def test_link_that_breaks_in_mid_frame_is_resumed_and_loses_nothing(address: str, side: str) -> None:
    data = os.urandom(MIB) * 16
    async with managing(address) as manager, joined(manager.address) as worker:
        there = manager.recorders[1]
        linked(worker).send(Beat(1))
        linked(worker).send(bulk(2), [data])
        linked(worker).send(Beat(3))
        linked(there).send(bulk(4), [data])
        linked(there).send(Beat(5))
        await there.until_numbers(1)
        cut(linked(worker if side == "worker" else there))
        await there.until_numbers(3)
        await worker.until_numbers(2)
        assert there.numbers == [1, 2, 3]
        assert worker.numbers == [4, 5]
        assert there.frames[1].buffers[0] == data
        assert worker.frames[0].buffers[0] == data
        for recorder in (worker, there):
            assert [word for word in recorder.story if "writable" not in word] == ["opened", "broken", "resumed"]


@on_both_loops
async def test_what_is_sent_while_the_link_is_down_arrives_after_its_resumption(address: str) -> None:
    async with managing(address) as manager, joined(manager.address) as worker:
        there = manager.recorders[1]
        cut(linked(there))
        await there.until_said("broken")
        assert not linked(there).connected
        linked(there).send(Beat(1))
        assert linked(there).unsent_bytes > 0
        await worker.until_numbers(1)
        assert worker.numbers == [1]


@on_both_loops
@pytest.mark.parametrize("seed", range(4))
async def test_every_frame_arrives_once_and_in_order_over_many_broken_connections(
    address: str, tmp_path: Path, seed: int
) -> None:
    rng = seeded(seed)
    # From so few bytes that the gate, TLS, the hello and the welcome are broken too, to a few hundred thousand. TLS alone takes
    # about 1,500; a link that hardly ever got through it would spend the test waiting to dial again.
    least = 3 if address.startswith("tcp://") else 1
    budgets = lambda: int(10 ** rng.uniform(least, 5.5))  # noqa: E731
    total = 1500
    async with managing(address) as manager, Proxy(tmp_path / "proxy", manager.address, budgets) as proxy:  # noqa: SIM117  # a third would not fit
        async with joined(proxy.address, retry_for_s=30.0, unacked_limit_bytes=MIB) as worker:
            there = manager.recorders[1]

            async def stream(recorder: Recorder) -> None:
                sent = 0
                while sent < total:
                    await recorder.until(lambda: linked(recorder).writable)
                    for _ in range(min(rng.randrange(1, 60), total - sent)):
                        if rng.random() < 0.1:
                            linked(recorder).send(bulk(sent), [rng.randbytes(rng.randrange(1, 20_000))])
                        else:
                            linked(recorder).send(Beat(sent))
                        sent += 1
                    await asyncio.sleep(0)

            async with asyncio.TaskGroup() as group:
                group.create_task(stream(worker))
                group.create_task(stream(there))
            await worker.until_numbers(total)
            await there.until_numbers(total)
            assert worker.numbers == list(range(total))
            assert there.numbers == list(range(total))
            assert proxy.connections > 5
            assert worker.story.count("broken") == worker.story.count("resumed")


@on_both_loops
async def test_link_is_resumed_though_the_listeners_end_has_noticed_nothing(address: str) -> None:
    async with managing(address) as manager, joined(manager.address) as worker:
        there = manager.recorders[1]
        # The old connection lives on at the manager's side: the worker only forgets it.
        connection = linked(worker)._connection
        assert connection is not None
        linked(worker).connection_lost(connection, None)
        linked(worker).send(Beat(1))
        linked(there).send(Beat(2))
        await there.until_numbers(1)
        await worker.until_numbers(1)
        assert there.story == ["opened", "broken", "resumed"]
        assert there.numbers == [1]
        assert worker.numbers == [2]
        connection.abort()


@on_both_loops
async def test_resumption_of_a_link_that_the_manager_gave_up_is_refused_as_stale(unix: str) -> None:
    async with managing(unix, resume_within_s=0.0) as manager, joined(unix) as worker:
        there = manager.recorders[1]
        cut(linked(there))
        await there.until_said("closed")
        assert isinstance(there.error, LinkLost)
        await worker.until_said("closed")
        assert isinstance(worker.error, LinkRefused)
        assert worker.error.code == "stale"
        assert "stale" in str(worker.error)
        assert manager.listener.links == 0


@on_both_loops
async def test_dialler_gives_up_when_the_time_to_resume_is_over(tmp_path: Path) -> None:
    async with (
        managing(f"unix:{tmp_path}/manager") as manager,
        Proxy(tmp_path / "proxy", manager.address, lambda: 10**9) as proxy,
        joined(proxy.address, resume_within_s=0.05) as worker,
    ):
        proxy._upstream = UnixAddress("/nowhere")  # it still accepts, and closes at once
        proxy.cut()
        await worker.until_said("closed")
        assert type(worker.error) is LinkLost
        assert worker.story == ["opened", "broken", "closed"]


@on_both_loops
@pytest.mark.parametrize("also_file", [True, False])
async def test_link_is_closed_within_a_second_of_its_manager_going(address: str, also_file: bool) -> None:
    loop = asyncio.get_running_loop()
    async with managing(address) as manager, joined(manager.address) as worker:
        manager.listener.close()  # a Unix socket's file is gone with it
        if address.startswith("unix:") and not also_file:
            # The file of a process that was killed stays; nobody listens.
            import socket

            dead = socket.socket(socket.AF_UNIX)
            dead.bind(address.removeprefix("unix:"))
            dead.close()
        since = loop.time()
        cut(linked(manager.recorders[1]))
        await worker.until_said("closed")
        assert isinstance(worker.error, ManagerGone)
        assert loop.time() - since < 1.0
        assert isinstance(manager.recorders[1].error, LinkLost)


@on_both_loops
async def test_refused_address_is_dialled_on_if_it_may_come_back(unix: str) -> None:
    async with managing(unix) as manager, joined(unix, refused_means_gone=False, resume_within_s=0.7) as worker:
        manager.listener.close()
        cut(linked(manager.recorders[1]))
        await worker.until_said("closed")
        assert type(worker.error) is LinkLost


# --- the end -------------------------------------------------------------------------------------------------------------


@on_both_loops
@pytest.mark.parametrize("side", ["manager", "worker"])
async def test_close_writes_what_was_sent_and_ends_both_ends_without_an_error(address: str, side: str) -> None:
    async with managing(address) as manager, joined(manager.address) as worker:
        there = manager.recorders[1]
        closing, other = (there, worker) if side == "manager" else (worker, there)
        linked(closing).send(bulk(1), [bytes(8 * MIB)])
        linked(closing).send(Beat(2))
        linked(closing).close()
        linked(closing).close()
        linked(closing).send(Beat(3))
        await other.until_said("closed")
        await closing.until_said("closed")
        assert other.numbers == [1, 2]
        assert other.error is None
        assert closing.error is None
        assert linked(closing).closed
        linked(closing).abort()
        await until(lambda: manager.listener.links == 0)


@on_both_loops
async def test_closing_a_link_that_is_down_ends_it(unix: str) -> None:
    async with managing(unix) as manager, joined(unix) as worker:
        there = manager.recorders[1]
        manager.listener.close()
        cut(linked(worker))
        await worker.until_said("broken")
        linked(worker).close()
        await worker.until_said("closed")
        assert worker.error is None
        await there.until_said("closed")


@on_both_loops
async def test_handler_may_close_the_link_in_each_of_its_methods(address: str) -> None:
    for method in ("link_opened", "frames_received", "link_broken", "link_resumed"):
        async with managing(address) as manager:
            recorder = Recorder()
            plain = getattr(recorder, method)

            def closing(link: Link, *rest: object, plain: object = plain) -> None:
                plain(link, *rest)  # type: ignore[operator]
                link.close()

            setattr(recorder, method, closing)
            async with joined(manager.address, recorder=recorder):
                if not linked(recorder).closed:
                    linked(manager.recorders[1]).send(Beat(1))
                    await recorder.until_numbers(1)
                if not linked(recorder).closed:
                    cut(linked(manager.recorders[1]))
                await recorder.until_said("closed")
                assert recorder.error is None


@on_both_loops
async def test_handler_that_finds_a_protocol_error_ends_its_link_only_and_the_peer_is_told(unix: str) -> None:
    async with managing(unix) as manager, joined(unix) as worker, joined(unix, hello=worker_hello(2)) as bystander:
        there = manager.recorders[1]
        there.raises = ProtocolError("a result for a call that was never sent")
        linked(worker).send(Beat(1))
        await there.until_said("closed")
        assert there.error is there.raises
        await worker.until_said("closed")
        assert is_protocol_error(worker.error, "never sent")
        linked(bystander).send(Beat(2))
        await manager.recorders[2].until_numbers(1)


@on_both_loops
async def test_handler_with_a_bug_ends_its_link_and_the_loop_hears_of_it(unix: str) -> None:
    heard: list[object] = []
    loop = asyncio.get_running_loop()
    async with managing(unix) as manager, joined(unix) as worker:
        loop.set_exception_handler(lambda loop, context: heard.append(context["exception"]))
        there = manager.recorders[1]
        there.raises = KeyError("bug")
        linked(worker).send(Beat(1))
        await there.until_said("closed")
        assert there.error is there.raises
        await worker.until_said("closed")
        assert heard == [there.raises]


# --- peers that break the rules ------------------------------------------------------------------------------------------


@on_both_loops
@pytest.mark.parametrize(
    ("message", "words"),
    [
        (worker_hello(), "second Hello"),
        (Welcome(0, {}), "second Welcome"),
        (Ack(1), "more frames than were sent"),
    ],
)
async def test_message_that_has_no_place_on_a_standing_link_ends_it(unix: str, message: Welcome | Ack, words: str) -> None:
    async with managing(unix) as manager, joined(unix) as worker:
        connection = linked(worker)._connection
        assert connection is not None
        linked(worker)._write_unnumbered(connection, message)
        await manager.recorders[1].until_said("closed")
        assert is_protocol_error(manager.recorders[1].error, words)
        await worker.until_said("closed")
        assert is_protocol_error(worker.error, words)


@on_both_loops
async def test_refusal_on_a_standing_link_ends_it_after_the_frames_before_it(address: str) -> None:
    async with managing(address) as manager, joined(manager.address) as worker:
        there = linked(manager.recorders[1])
        connection = there._connection
        assert connection is not None
        there.send(Beat(1))
        there._write_unnumbered(connection, Refused("stale", "you are declared lost", "", ""))
        there.send(Beat(2))
        await worker.until_said("closed")
        assert worker.numbers == [1]
        assert isinstance(worker.error, LinkRefused)


@on_both_loops
async def test_frame_above_the_limits_ends_the_link_and_no_other(address: str) -> None:
    limits = FrameLimits(header_bytes=1000, buffer_bytes=1000, buffers_total_bytes=1000, buffers_count=1)
    async with managing(address, limits=limits) as manager, joined(manager.address, hello=worker_hello(2)) as bystander:
        for message, buffers in ((bulk(1), [bytes(1001)]), (Refused("stale", "y" * 2000, "", ""), [])):
            async with joined(manager.address) as worker:
                there = manager.recorders[1]
                linked(worker).send(message, buffers)
                await there.until_said("closed")
                assert is_protocol_error(there.error, "allowed here")
                await worker.until_said("closed")
                assert isinstance(worker.error, ProtocolError)
        linked(bystander).send(Beat(3))
        await manager.recorders[2].until_numbers(1)


@on_both_loops
async def test_impossible_count_in_a_resumption_ends_the_link(unix: str) -> None:
    async with managing(unix) as manager, joined(unix) as worker:
        linked(worker)._ledger.received = 7  # it claims frames that were never sent
        cut(linked(worker))
        await worker.until_said("closed")
        assert is_protocol_error(worker.error, "more frames than were sent")
        await manager.recorders[1].until_said("closed")
        assert is_protocol_error(manager.recorders[1].error, "more frames than were sent")


@on_both_loops
async def test_link_cannot_be_resumed_by_somebody_else(unix: str) -> None:
    async with managing(unix) as manager, joined(unix) as worker:
        thief = worker_hello(2, link_id=linked(worker).hello.link_id)
        with pytest.raises(LinkRefused, match="not this peer's"):
            async with joined(unix, hello=thief):
                pass
        linked(worker).send(Beat(1))
        await manager.recorders[1].until_numbers(1)
        assert worker.story == ["opened"]
