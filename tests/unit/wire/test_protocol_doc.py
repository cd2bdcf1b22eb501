"""`docs/protocol.md` says what the code does: its tables are compared with the code's own."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from aiocluster.errors import ProtocolError
from aiocluster.wire import checks, frames, handshake, messages, payloads, table
from aiocluster.wire.functions import content_hash
from aiocluster.wire.messages import CallStatus, Mode
from aiocluster.wire.table import MESSAGES

DOC = Path(__file__).parents[3] / "docs" / "protocol.md"
ROW = re.compile(r"^\| (\d+) \| (\w+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


@pytest.fixture(scope="module")
def doc() -> str:
    return " ".join(DOC.read_text("utf-8").split())


def rows() -> dict[int, tuple[str, str, list[str]]]:
    found = ROW.findall(DOC.read_text("utf-8"))
    return {int(tag): (name, way, [part.split("`")[1] for part in fields.split(";")]) for tag, name, way, fields in found}


def test_table_has_every_message_with_its_fields_in_order() -> None:
    assert {tag: (name, fields) for tag, (name, _, fields) in rows().items()} == {
        tag: (kind.type.__name__, list(kind.type._fields)) for tag, kind in MESSAGES.items()
    }


def test_direction_is_the_one_that_the_message_itself_says() -> None:
    for tag, (name, way, _) in rows().items():
        said = (MESSAGES[tag].type.__doc__ or "").split(":")[0].lower()
        if said.startswith(("manager to", "agent to", "worker to")) and way != "both":
            sender, receivers = said.replace("(", " ").split(" to ")[:2]
            assert way == f"{sender} → {receivers.replace(' or ', ', ')}", name


def test_options_of_nested_calls_are_all_named(doc: str) -> None:
    said = doc[doc.index("The options of a nested call") :]
    keys = re.findall(r"`(\w+)`", said)
    message = messages.Submit([1], [1], [1], b"\0", [b""], [[0, {}]], [])
    for key in keys:
        for value in (1, True, [1], {"a": 1}, "x"):
            try:
                table.decode(table.fields_of(message._replace(options=[[0, {key: value}]])))
                break
            except ProtocolError:
                continue
        else:
            raise AssertionError(f"the code does not know {key}")
    assert len(keys) == len(set(keys)) == 10


def test_figures_are_those_of_the_code(doc: str) -> None:
    limits, before = frames.FrameLimits(), frames.BEFORE_WELCOME
    assert f"| header | {before.header_bytes // 2**10} KiB | {limits.header_bytes // 2**30} GiB |" in doc
    assert f"| one buffer | none are allowed | {limits.buffer_bytes // 2**30} GiB |" in doc
    assert f"in all | none are allowed | {limits.buffers_total_bytes // 2**30} GiB |" in doc
    assert f"count | none are allowed | {limits.buffers_count:,} |" in doc
    assert f"| {before.depth}, with the header itself | {checks.MAX_DEPTH}, in each field of plain data |" in doc
    assert f"Buffers of {payloads.OUT_OF_BAND_BYTES // 2**10} KiB and more are out of band" in doc
    assert f"A pickle of {payloads.LARGE_DATA_BYTES // 2**10} KiB and more" in doc
    assert f"It is protocol **{handshake.PROTOCOL}**." in doc
    assert CallStatus.LAST == 3
    assert Mode.ALL == Mode.CHUNK + Mode.STAR + Mode.KEEP_GOING + Mode.ORDERED + Mode.ASYNC == 31


def test_hash_is_the_one_that_is_written_down(doc: str) -> None:
    assert "BLAKE2b with a digest of 16 bytes" in doc
    assert content_hash(b"payload") == hashlib.blake2b(b"payload", digest_size=16).digest()
