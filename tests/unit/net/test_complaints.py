"""Complaints are bounded, and none is forgotten."""

from __future__ import annotations

import logging

import pytest

from aiocluster.net.complaints import BURST, Complaints


def test_lines_are_bounded_and_the_next_one_counts_what_was_left_out(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints(logging.getLogger("test"), now=0.0)
    for _ in range(BURST + 30):
        complaints.dropped("10.0.0.1:5", "it sent nothing", now=0.0)
    assert len(caplog.records) == BURST
    complaints.dropped("10.0.0.1:5", "it sent nothing", now=0.4)
    assert len(caplog.records) == BURST
    complaints.dropped("10.0.0.2:6", "it sent nothing", now=0.5)
    assert caplog.messages[-1] == "dropped a connection from 10.0.0.2:6: it sent nothing (31 more were dropped before it)"
    complaints.dropped("10.0.0.3:7", "it sent 3 bytes", now=100.0)
    assert caplog.messages[-1] == "dropped a connection from 10.0.0.3:7: it sent 3 bytes"
