"""Frames: each exactly once and complete however the bytes are split; what is not a frame is refused before it costs anything."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from struct import pack

import msgpack  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiocluster.errors import ProtocolError
from aiocluster.wire import frames as module
from aiocluster.wire.frames import BEFORE_WELCOME, DIRECT_BYTES, STAGING_BYTES, Frame, FrameDecoder, FrameLimits, encode
from aiocluster.wire.messages import Ack, Answer, Beat, Calls, CancelCalls, Message, Results, Yielded
from aiocluster.wire.table import decode, fields_of

from .strategies import buffers_for, messages

Plain = tuple[Message, list[bytes]]


def frame(header: object, *buffers: bytes) -> bytes:
    packed = header if isinstance(header, bytes) else msgpack.packb(header)
    return pack(">I", len(packed)) + packed + b"".join(buffers)


def written(message: Message, buffers: list[bytes] | None = None) -> bytes:
    return b"".join(encode(message, buffers_for(message) if buffers is None else buffers))


def plain(frames: list[Frame]) -> list[Plain]:
    return [(message, [bytes(buffer) for buffer in buffers]) for message, buffers in frames]


def new_decoder() -> FrameDecoder:
    return FrameDecoder(FrameLimits())


def with_buffers(*sizes: int) -> tuple[Message, list[bytes]]:
    buffers = [random.Random(size).randbytes(size) for size in sizes]
    return Calls(1, [5], [3], b"\0", [b"payload"], [], [[0, len(sizes)]], []), buffers


CASES: dict[str, list[tuple[Message, list[bytes]]]] = {
    "one small": [(Ack(5), [])],
    "a column": [(CancelCalls(list(range(300)), True), [])],
    "small buffers": [with_buffers(1, 0, 100)],
    "only an empty buffer": [with_buffers(0)],
    "two frames": [(Beat(1), []), (Yielded(2), [])],
    "buffers, then another": [with_buffers(10, 20), (Beat(1), [])],
}
LARGE: dict[str, list[tuple[Message, list[bytes]]]] = {
    "one direct buffer": [with_buffers(DIRECT_BYTES)],
    "a buffer of several stagings": [with_buffers(3 * STAGING_BYTES + 17)],
    "large and small by turns": [with_buffers(10, 200_000, 0, 5, 700_000, 1), (Beat(1), []), with_buffers(100_000)],
    "a long header": [(Answer(1, True, "x" * 300_000, b""), []), (Beat(2), [])],
    "a long header and a large buffer": [
        (Results([1], b"\0", [b"y" * 400_000], [[0, 1]], []), [b"z" * 300_000]),
        (Beat(2), []),
    ],
}


def stream(case: list[tuple[Message, list[bytes]]]) -> bytes:
    return b"".join(written(message, buffers) for message, buffers in case)


# --- what is right -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CASES, *LARGE])
def test_frames_fed_whole(name: str) -> None:
    case = {**CASES, **LARGE}[name]
    decoder = new_decoder()
    assert plain(decoder.feed(stream(case))) == case
    assert decoder.at_boundary


@pytest.mark.parametrize("name", CASES)
def test_frames_fed_byte_by_byte(name: str) -> None:
    case = CASES[name]
    decoder = new_decoder()
    found: list[Frame] = []
    for byte in stream(case):
        found += decoder.feed(bytes([byte]))
    assert plain(found) == case
    assert decoder.at_boundary


@pytest.mark.parametrize("name", [*CASES, *LARGE])
def test_frames_with_trailing_data_keep_it_for_the_next(name: str) -> None:
    case = {**CASES, **LARGE}[name]
    decoder = new_decoder()
    last = written(Beat(99))
    assert plain(decoder.feed(stream(case) + last[:3])) == case
    assert not decoder.at_boundary
    assert plain(decoder.feed(last[3:])) == [(Beat(99), [])]
    assert decoder.at_boundary


@pytest.mark.parametrize("name", CASES)
def test_end_of_stream_is_clean_only_between_frames(name: str) -> None:
    case = CASES[name]
    data = stream(case)
    boundaries = {0}
    for message, buffers in case:
        boundaries.add(max(boundaries) + len(written(message, buffers)))
    for offset in range(len(data) + 1):
        decoder = new_decoder()
        decoder.feed(data[:offset])
        assert decoder.at_boundary == (offset in boundaries), offset


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("seed", range(5))
def test_frames_fed_in_random_splits(name: str, seed: int) -> None:
    case = LARGE[name]
    data = stream(case)
    chance = random.Random(seed)
    decoder = new_decoder()
    found: list[Frame] = []
    start = 0
    while start < len(data):
        end = start + chance.choice([1, 3, 100, 5_000, 70_000, 400_000])
        found += decoder.feed(data[start:end])
        start = end
    assert plain(found) == case


@given(st.lists(messages, max_size=4), st.data())
def test_any_messages_in_any_splits(sent: list[Message], data: st.DataObject) -> None:
    case = [(message, buffers_for(message)) for message in sent]
    whole = stream(case)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    decoder = new_decoder()
    found: list[Frame] = []
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        found += decoder.feed(whole[start:end])
    assert plain(found) == case
    assert decoder.at_boundary


def test_many_small_frames_wrap_around_the_staging_area() -> None:
    decoder = new_decoder()
    one = written(CancelCalls(list(range(1000)), False))
    data = one * (3 * STAGING_BYTES // len(one))
    found: list[Frame] = []
    for start in range(0, len(data), 100_003):
        found += decoder.feed(data[start : start + 100_003])
    assert len(found) == len(data) // len(one)
    assert len({tuple(item.message.ids) for item in found if isinstance(item.message, CancelCalls)}) == 1


def test_buffers_are_writable_and_each_its_own() -> None:
    message, buffers = with_buffers(10, 10, DIRECT_BYTES, DIRECT_BYTES)
    decoder = new_decoder()
    (found,) = decoder.feed(written(message, buffers))
    for index, view in enumerate(found.buffers):
        view[:] = bytes([index]) * len(view)
    assert [set(bytes(view)) for view in found.buffers] == [{0}, {1}, {2}, {3}]
    decoder.feed(written(message, buffers))
    assert set(bytes(found.buffers[2])) == {2}


def test_large_buffer_is_received_into_its_final_memory() -> None:
    taken: list[memoryview] = []

    def allocate(size: int) -> memoryview:
        taken.append(memoryview(bytearray(size)))
        return taken[-1]

    message, buffers = with_buffers(STAGING_BYTES * 4)
    first, body = encode(message, buffers)
    decoder = FrameDecoder(FrameLimits(), allocate)
    assert decoder.feed(first) == []
    room = decoder.get_buffer(65536)
    assert len(room) == STAGING_BYTES * 4
    room[:] = body
    (found,) = decoder.received(len(room))
    assert found.buffers[0] is taken[0]
    assert bytes(taken[0]) == buffers[0]


def test_room_is_never_empty() -> None:
    decoder = new_decoder()
    data = stream(LARGE["large and small by turns"])
    while data:
        room = decoder.get_buffer(-1)
        assert len(room) > 0
        n = min(len(room), len(data), 60_001)
        room[:n] = data[:n]
        data = data[n:]
        decoder.received(n)
    assert len(decoder.get_buffer(-1)) == STAGING_BYTES


def test_header_is_plain_msgpack_for_any_other_reader() -> None:
    message, buffers = with_buffers(3, 5)
    first, *rest = encode(message, buffers)
    assert int.from_bytes(first[:4], "big") == len(first) - 4
    assert msgpack.unpackb(first[4:]) == [34, *message, [3, 5]]
    assert [bytes(view) for view in rest] == buffers


def test_header_read_without_msgpack() -> None:
    """The bytes of one frame, by the format's own words: fixarray 3, fixint 37, uint16 1000, empty fixarray."""
    assert written(decode([37, 1000])) == bytes.fromhex("00000006 93 25 cd03e8 90".replace(" ", ""))


def test_buffers_of_any_shape_are_sent_flat() -> None:
    array = memoryview(bytes(24)).cast("d", shape=[3, 1])
    message, _ = with_buffers(24)
    first, body = encode(message, [array])
    assert bytes(body) == bytes(24)
    assert plain(new_decoder().feed(bytes(first) + bytes(body))) == [(message, [bytes(24)])]


def test_packer_that_grew_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    before = module._packer
    monkeypatch.setattr(module, "_packer", before)
    monkeypatch.setattr(module, "_PACKER_KEEPS", 1000)
    encode(Answer(1, True, "x" * 2000, b""))
    assert module._packer is not before


# --- our own mistakes ----------------------------------------------------------------------------------------------------


def test_message_with_the_wrong_number_of_buffers_is_not_encoded() -> None:
    message, _ = with_buffers(1, 2)
    with pytest.raises(ValueError, match="speaks of 2 buffers, but comes with 1"):
        encode(message, [b"1"])
    with pytest.raises(ValueError, match="speaks of 0 buffers, but comes with 1"):
        encode(Beat(1), [b"1"])


def test_value_that_msgpack_cannot_say_is_not_encoded_and_harms_no_later_one() -> None:
    with pytest.raises(TypeError):
        encode(Answer(1, True, ["x", object()], b""))
    assert written(Beat(1)) == frame([20, 1, []])


def test_header_beyond_32_bits_is_not_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TOO_LONG", 100)
    with pytest.raises(ValueError, match="too large"):
        encode(Answer(1, True, "x" * 200, b""))


@pytest.mark.parametrize(
    "change", [{"header_bytes": 0}, {"header_bytes": 2**32}, {"buffer_bytes": -1}, {"buffers_count": -1}, {"depth": -1}]
)
def test_limits_are_checked(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must"):
        FrameLimits(**change)


# --- what is wrong -------------------------------------------------------------------------------------------------------


def no_memory(size: int) -> memoryview:
    raise AssertionError(f"memory of {size} bytes was taken for what is not allowed")


LIMITS = FrameLimits(header_bytes=1000, buffer_bytes=100, buffers_total_bytes=150, buffers_count=3)


def two(n: int) -> list[object]:
    return [34, 1, [5], [3], b"\0", [b""], [], [[0, n]], []]


WRONG: dict[str, tuple[bytes, str]] = {
    "length 0": (pack(">I", 0), "without a header"),
    "length 1, nothing of a message": (frame(b"\x01"), "not an array"),
    "length limit + 1": (pack(">I", 1001), "larger than is allowed"),
    "length 2**31": (pack(">I", 2**31), "larger than is allowed"),
    "length 2**32 - 1": (b"\xff" * 4, "larger than is allowed"),
    "length 2**64 - 1": (b"\xff" * 8, "larger than is allowed"),
    "HTTP": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "larger than is allowed"),
    "SSH": (b"SSH-2.0-OpenSSH_9.6\r\n", "larger than is allowed"),
    "TLS": (bytes.fromhex("16030100c8010000c40303"), "larger than is allowed"),
    "a gate's greeting": (b"aiocluster/2".ljust(48, b"\0"), "larger than is allowed"),
    "no array": (frame({"a": 1}), "not an array"),
    "an empty array": (frame([]), "not an array"),
    "only sizes": (frame([[]]), "not an array"),
    "no sizes": (frame([20, 1]), "sizes"),
    "sizes of text": (frame([20, 1, ["1"]]), "sizes"),
    "negative sizes": (frame([20, 1, [-1]]), "sizes"),
    "truth values for sizes": (frame([20, 1, [True]]), "sizes"),
    "an unknown tag": (frame([99, 1, []]), "unknown tag"),
    "a wrong field": (frame([20, "hunter2", []]), "Beat.number"),
    "buffers nobody speaks of": (frame([20, 1, [5]]), "another number of buffers"),
    "too few buffers": (frame([*two(2), [1]]), "another number of buffers"),
    "a buffer too large": (frame([*two(1), [101]]), "larger buffers"),
    "a buffer of 2**64 - 1": (frame([*two(1), [2**64 - 1]]), "larger buffers"),
    "too much in all": (frame([*two(2), [100, 51]]), "larger buffers"),
    "too many buffers": (frame([*two(4), [1, 1, 1, 1]]), "more buffers"),
    "too many buffers that are empty": (frame([*two(4), [0, 0, 0, 0]]), "more buffers"),
    "bytes after the array": (frame(msgpack.packb([20, 1, []]) + b"\0"), "goes on after"),
    "the byte 0xc1": (frame(b"\x93\x14\xc1\x90"), "does not know"),
    "text that is not UTF-8": (frame(b"\x93\x14\xa2\xff\xfe\x90"), "UTF-8"),
    "deep arrays": (frame(b"\x91" * 1000), "not valid msgpack|deeply"),
    "deeper arrays, closed": (frame(b"\x91" * 999 + b"\x90"), "not an array|sizes|tag|deeply"),
    "an array that says it is longer": (frame(b"\xdd\xff\xff\xff\xff\x14"), "not valid msgpack"),
    "text that says it is longer": (frame(b"\x93\x14\xdb\x7f\xff\xff\xff"), "not valid msgpack"),
    "a map that says it is longer": (frame(b"\x93\x14\xdf\x7f\xff\xff\xff"), "not valid msgpack"),
    "an array cut off": (frame(b"\x93\x14"), "not valid msgpack"),
    "a key twice": (frame(b"\x94\x15\x01\x82\xa1a\x01\xa1a\x02\x90"), "same key twice"),
    "a number as key": (frame([2, 1, {1: 1}, []]), "not valid msgpack"),
    "an array as key": (frame(b"\x94\x02\x01\x81\x90\x01\x90"), "not valid msgpack"),
    "bytes as key": (frame([2, 1, {b"a": 1}, []]), "Welcome.settings"),
    "NaN": (frame([19, float("nan"), []]), "Shutdown.grace_s"),
    "infinity": (frame([19, float("inf"), []]), "Shutdown.grace_s"),
    "a negative number": (frame([19, -1, []]), "Shutdown.grace_s"),
    "an extension type": (frame([20, msgpack.ExtType(5, b"hunter2"), []]), "extension type"),
    "a timestamp": (frame([20, msgpack.Timestamp(1), []]), "Beat.number|extension"),
    "a timestamp that is none": (frame(b"\x93\x14\xd4\xff\x00\x90"), "msgpack|extension"),
}


def feed_all(decoder: FrameDecoder, pieces: list[bytes]) -> None:
    for piece in pieces:
        decoder.feed(piece)


def splits(data: bytes) -> Iterator[list[bytes]]:
    yield [data]
    yield [bytes([byte]) for byte in data]
    yield [data + b"trailing hunter2" * 10]
    yield [written(Beat(1)) + data]


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_frame_is_refused_in_any_splits_and_takes_no_memory(name: str) -> None:
    data, complaint = WRONG[name]
    for pieces in splits(data):
        decoder = FrameDecoder(LIMITS, no_memory)
        with pytest.raises(ProtocolError, match=complaint) as caught:
            feed_all(decoder, pieces)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None, "it would keep alive, and show, what was decoded"


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused_before_the_welcome_too(name: str) -> None:
    with pytest.raises(ProtocolError):
        FrameDecoder(BEFORE_WELCOME, no_memory).feed(WRONG[name][0] + bytes(5000))


def test_depth_before_the_welcome_is_bounded() -> None:
    def answer(depth: int) -> bytes:
        value: object = []
        for _ in range(depth - 2):
            value = [value]
        return written(Answer(1, True, value, b""))

    assert len(FrameDecoder(BEFORE_WELCOME).feed(answer(8))) == 1
    with pytest.raises(ProtocolError, match="deeper"):
        FrameDecoder(BEFORE_WELCOME).feed(answer(9))
    assert len(new_decoder().feed(answer(9))) == 1


def test_dead_decoder_repeats_its_error_and_gives_nothing_more() -> None:
    decoder = new_decoder()
    with pytest.raises(ProtocolError, match="without a header"):
        decoder.feed(bytes(4))
    for _ in range(2):
        room = decoder.get_buffer(-1)
        room[: len(written(Beat(1)))] = written(Beat(1))
        with pytest.raises(ProtocolError, match="without a header"):
            decoder.received(len(written(Beat(1))))
    assert not decoder.at_boundary


def test_header_of_exactly_the_limit_is_taken_and_one_more_is_not() -> None:
    header = msgpack.packb([44, 1, True, "x" * 200, b"", []])
    assert len(FrameDecoder(FrameLimits(header_bytes=len(header))).feed(frame(header))) == 1
    with pytest.raises(ProtocolError, match="larger than is allowed"):
        FrameDecoder(FrameLimits(header_bytes=len(header) - 1)).feed(frame(header))


def test_limits_raised_hold_from_the_next_frame_on() -> None:
    decoder = FrameDecoder(BEFORE_WELCOME)
    assert len(decoder.feed(written(Beat(1)))) == 1
    decoder.limits = FrameLimits()
    message, buffers = with_buffers(100_000)
    assert plain(decoder.feed(written(message, buffers))) == [(message, buffers)]


def test_memory_that_is_missing_ends_the_link_and_not_the_process() -> None:
    def none_left(size: int) -> memoryview:
        raise MemoryError

    message, buffers = with_buffers(10)
    decoder = FrameDecoder(FrameLimits(), none_left)
    with pytest.raises(ProtocolError, match="more memory than there is"):
        decoder.feed(written(message, buffers))
    assert not decoder.at_boundary


@given(st.binary(max_size=300))
def test_garbage_is_refused_or_incomplete(data: bytes) -> None:
    decoder = FrameDecoder(LIMITS)
    try:
        decoder.feed(data)
    except ProtocolError:
        pass


@given(st.binary(max_size=60))
def test_garbage_as_header_is_refused(data: bytes) -> None:
    decoder = FrameDecoder(LIMITS)
    refusal: ProtocolError | None = None
    try:
        decoder.feed(frame(data))
    except ProtocolError as error:
        refusal = error
    assert refusal is None or refusal.__context__ is None


@given(messages, st.data())
def test_frame_with_some_bytes_changed_is_refused_or_another_valid_one(message: Message, data: st.DataObject) -> None:
    changed = bytearray(written(message))
    for index in data.draw(st.lists(st.integers(4, len(changed) - 1), min_size=1, max_size=3)):
        changed[index] = data.draw(st.integers(0, 255))
    try:
        found = FrameDecoder(LIMITS).feed(changed)
    except ProtocolError:
        return
    for item in found:
        assert decode(fields_of(item.message)) == item.message


@settings(max_examples=5)
@given(st.integers(0, 2**32))
def test_random_megabytes_are_refused_at_once(seed: int) -> None:
    decoder = FrameDecoder(BEFORE_WELCOME, no_memory)
    with pytest.raises(ProtocolError):
        decoder.feed(random.Random(seed).randbytes(2**20) + bytes(4))


def test_control_frames_decode_without_pickle() -> None:
    """The modules that read a peer's first frames do not even import what could run them."""
    program = (
        "import sys, json\nfrom aiocluster.wire import frames, handshake\n"
        "print(json.dumps(sorted({'pickle', 'cloudpickle', 'asyncio', 'socket'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def touches(path: str) -> bytes:
    import pickle

    class Touch:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
            return open, (path, "w")

    return pickle.dumps(Touch())


def test_pickle_in_any_place_of_a_frame_never_runs(tmp_path: object) -> None:
    target = f"{tmp_path}/touched"
    evil = touches(target)
    headers: list[object] = [evil, [evil, 1, []], [20, evil, []], [20, 1, evil], [44, 1, True, evil, evil, []]]
    headers += [[2, 1, {"a": evil}, []], [32, [1], [bytes(16)], [evil], ["f"], []]]
    for data in [evil, *map(frame, headers), frame([*two(1), [len(evil)]], evil)]:
        try:
            FrameDecoder(FrameLimits()).feed(data)
        except ProtocolError:
            pass
    with pytest.raises(FileNotFoundError):
        open(target).close()
