"""The gate: who knows the token passes, in any splits of the bytes; who does not learns nothing and costs nothing."""

from __future__ import annotations

import hashlib
import hmac as other_hmac
import pickle
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiocluster.errors import AuthenticationError, ProtocolError, VersionMismatch
from aiocluster.ids import Token
from aiocluster.wire.handshake import (
    PLAIN,
    PROTOCOL,
    ClientGate,
    ServerGate,
    Versions,
    check_hello,
    hello,
    versions,
)
from aiocluster.wire.messages import Hello
from aiocluster.wire.table import decode, fields_of

TOKEN = Token(bytes(range(32)))
OTHER = Token(bytes(32))
S, C, F = b"s" * 32, b"c" * 32, b"f" * 32


def reply(token: Token = TOKEN, nonce: bytes = C) -> bytes:
    client = ClientGate(token, nonce)
    return client.feed(ServerGate(token, S).greeting)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


CUTS = st.lists(st.integers(0, 200), max_size=6)


@given(CUTS, CUTS, CUTS)
def test_two_ends_with_one_token_pass_each_other_in_any_splits(first: list[int], second: list[int], third: list[int]) -> None:
    server, client = ServerGate(TOKEN, S), ClientGate(TOKEN, C)
    assert len(server.greeting) == 48
    answer = b"".join(client.feed(piece) for piece in pieces(server.greeting, first))
    assert len(answer) == 64
    assert not client.passed
    proof = b"".join(server.feed(piece) for piece in pieces(answer, second))
    assert len(proof) == 64
    assert server.passed
    assert b"".join(client.feed(piece) for piece in pieces(proof, third)) == b""
    assert client.passed
    assert server.trailing == client.trailing == b""


def mac(text: bytes, *parts: bytes) -> bytes:
    return other_hmac.new(TOKEN.reveal(), b"".join((b"aiocluster/2 ", text, *parts)), hashlib.sha256).digest()


@pytest.mark.parametrize(("certificate", "mode"), [(PLAIN, b"\0"), (F, b"\1")])
def test_gate_is_what_the_protocol_says_by_another_computation(certificate: bytes, mode: bytes) -> None:
    server, client = ServerGate(TOKEN, S, certificate), ClientGate(TOKEN, C, tls=mode == b"\1")
    assert server.greeting == b"aiocluster/2\0\0\0\0" + S
    assert client.seal == server.seal == b""
    answer = client.feed(server.greeting)
    assert answer == C + mac(b"client", S, C, mode)
    proof = server.feed(answer)
    assert proof == certificate + mac(b"server", C, S, certificate)
    assert client.feed(proof) == b""
    assert client.certificate == certificate
    assert client.seal == server.seal == mac(b"inside", S, C, certificate)


@pytest.mark.parametrize(
    ("certificate", "tls", "at_server", "at_client"),
    [
        (PLAIN, True, "wants TLS, and this address speaks plain text", "speaks plain text at this address"),
        (F, False, "wants plain text, and this address speaks TLS", "speaks TLS at this address"),
    ],
    ids=["only the client wants TLS", "only the server wants TLS"],
)
def test_ends_that_disagree_about_tls_both_say_so_and_neither_passes(
    certificate: bytes, tls: bool, at_server: str, at_client: str
) -> None:
    server, client = ServerGate(TOKEN, S, certificate), ClientGate(TOKEN, C, tls=tls)
    with pytest.raises(ProtocolError, match=at_server) as caught:
        server.feed(client.feed(server.greeting))
    assert not isinstance(caught.value, AuthenticationError), "the token is right"
    with pytest.raises(ProtocolError, match=at_client) as caught:
        client.feed(server.parting)
    assert not isinstance(caught.value, AuthenticationError)
    assert not server.passed
    assert not client.passed
    assert client.certificate == PLAIN
    assert client.seal == server.seal == b""


@pytest.mark.parametrize("change", ["another certificate", "no certificate", "another mode"])
def test_nobody_between_the_ends_can_change_what_follows_the_gate(change: str) -> None:
    server, client = ServerGate(TOKEN, S, F), ClientGate(TOKEN, C, tls=True)
    answer = client.feed(server.greeting)
    if change == "another mode":
        with pytest.raises(AuthenticationError):
            ServerGate(TOKEN, S, F).feed(answer[:63] + bytes([answer[63] ^ 1]))
        return
    proof = server.feed(answer)
    with pytest.raises(AuthenticationError, match="the manager did not prove"):
        client.feed((PLAIN if change == "no certificate" else bytes(31) + b"\1") + proof[32:])


def test_client_that_does_not_know_the_token_gets_zeros_only() -> None:
    server = ServerGate(TOKEN, S, F)
    with pytest.raises(AuthenticationError):
        server.feed(reply(OTHER))
    assert server.parting == bytes(64)
    with pytest.raises(AuthenticationError):
        ServerGate(TOKEN, S).feed(reply(OTHER))
    client = ClientGate(TOKEN, C)
    client.feed(server.greeting)
    with pytest.raises(AuthenticationError):
        client.feed(server.parting)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_hash_of_a_certificate_has_32_bytes(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        ServerGate(TOKEN, S, bytes(size))


@pytest.mark.parametrize("extra", [b"x", b"hello frame" * 100])
def test_what_follows_the_gate_is_kept_for_the_next_layer(extra: bytes) -> None:
    server, client = ServerGate(TOKEN, S), ClientGate(TOKEN, C)
    proof = server.feed(client.feed(server.greeting) + extra)
    assert server.trailing == extra
    assert server.feed(b"more") == b""
    assert server.trailing == extra + b"more"
    assert client.feed(proof + extra) == b""
    assert client.passed
    assert client.trailing == extra
    assert client.feed(b"more") == b""
    assert client.trailing == extra + b"more"


@pytest.mark.parametrize("size", range(64))
def test_reply_that_is_too_short_is_waited_for(size: int) -> None:
    server = ServerGate(TOKEN, S)
    assert server.feed(reply()[:size]) == b""
    assert not server.passed
    assert server.trailing == b""


@pytest.mark.parametrize("bit", range(0, 512, 37))
def test_reply_off_by_one_bit_is_refused(bit: int) -> None:
    wrong = bytearray(reply())
    wrong[bit // 8] ^= 1 << bit % 8
    server = ServerGate(TOKEN, S)
    with pytest.raises(AuthenticationError, match="did not prove"):
        server.feed(wrong)
    assert not server.passed


@pytest.mark.parametrize("bit", range(0, 512, 17))
def test_proof_of_the_manager_off_by_one_bit_is_refused(bit: int) -> None:
    server, client = ServerGate(TOKEN, S), ClientGate(TOKEN, C)
    wrong = bytearray(server.feed(client.feed(server.greeting)))
    wrong[bit // 8] ^= 1 << bit % 8
    with pytest.raises(AuthenticationError, match="the manager did not prove"):
        client.feed(wrong)
    assert not client.passed


def test_token_of_an_old_cluster_is_refused_at_both_ends() -> None:
    with pytest.raises(AuthenticationError):
        ServerGate(TOKEN, S).feed(reply(OTHER))
    server, client = ServerGate(OTHER, S), ClientGate(TOKEN, C)
    client.feed(server.greeting)
    with pytest.raises(AuthenticationError):
        client.feed(bytes(64))


def test_reflected_nonce_is_refused_even_with_a_right_proof() -> None:
    with pytest.raises(AuthenticationError, match="our own nonce"):
        ServerGate(TOKEN, S).feed(S + mac(b"client", S, S, b"\0"))
    with pytest.raises(AuthenticationError, match="our own nonce"):
        ClientGate(TOKEN, S).feed(ServerGate(TOKEN, S).greeting)


def test_proof_reflected_to_the_client_is_refused() -> None:
    client = ClientGate(TOKEN, C)
    answer = client.feed(ServerGate(TOKEN, S).greeting)
    with pytest.raises(AuthenticationError):
        client.feed(PLAIN + answer[32:])


def test_reply_recorded_from_another_connection_is_refused() -> None:
    with pytest.raises(AuthenticationError):
        ServerGate(TOKEN, b"t" * 32).feed(reply())


def test_failed_gate_stays_failed() -> None:
    server = ServerGate(TOKEN, S)
    for data in (bytes(64), reply()):
        with pytest.raises(AuthenticationError):
            server.feed(data)
    assert not server.passed
    assert server.trailing == b""


@pytest.mark.parametrize("magic", [b"aiocluster/1", b"aiocluster/20", b"aiocluster/0"])
def test_other_version_of_the_protocol_is_named(magic: bytes) -> None:
    with pytest.raises(VersionMismatch) as caught:
        ClientGate(TOKEN, C).feed(magic.ljust(16, b"\0") + S)
    assert caught.value.ours == f"protocol {magic[11:].decode()}"
    assert caught.value.theirs == f"protocol {PROTOCOL}"


@pytest.mark.parametrize(
    "greeting",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x16\x03\x01",
        b"aiocluster-1",
        b"\0" * 48,
        b"aiocluster/x\0\0\0\0" + S,
        b"aiocluster/\0\0\0\0\0" + S,
        b"aiocluster/2\0\0\0x" + S,
        b"aiocluster/2 \0\0\0" + S,
    ],
)
def test_what_is_no_manager_is_told_from_the_first_bytes(greeting: bytes) -> None:
    for parts in ([greeting], [greeting[index : index + 1] for index in range(len(greeting))]):
        client = ClientGate(TOKEN, C)
        with pytest.raises(AuthenticationError, match="not an aiocluster manager"):
            assert b"".join(map(client.feed, parts)) == b""


def test_silent_server_gets_nothing() -> None:
    client = ClientGate(TOKEN, C)
    assert client.feed(b"") == b""
    assert client.feed(b"aiocl") == b""
    assert client.feed(b"uster/1") == b""


@given(st.binary(max_size=200))
def test_garbage_never_passes_either_gate(data: bytes) -> None:
    for gate in (ServerGate(TOKEN, S), ClientGate(TOKEN, C)):
        answer, text = b"", ""
        try:
            answer = gate.feed(data)
        except ProtocolError as error:
            text = str(error)
        assert answer == b""
        assert repr(data) not in text
        assert not gate.passed


@pytest.mark.parametrize("kind", [ServerGate, ClientGate])
@pytest.mark.parametrize("size", [0, 31, 33])
def test_nonce_has_32_bytes(kind: Callable[[Token, bytes], object], size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        kind(TOKEN, bytes(size))


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("before", [b"", b"aiocluster/2\0\0\0\0", C, S, bytes(64)])
def test_pickle_sent_to_a_gate_never_runs(tmp_path: Path, before: bytes) -> None:
    path = tmp_path / "touched"
    for gate in (ServerGate(TOKEN, S), ClientGate(TOKEN, C)):
        try:
            gate.feed(before + pickle.dumps(Touch(path)))
        except ProtocolError:
            pass
        assert not gate.passed
    assert not path.exists()
    pickle.loads(pickle.dumps(Touch(path))).close()
    assert path.exists(), "the test's own weapon must work"


# --- hello ---------------------------------------------------------------------------------------------------------------

OURS = versions()


def a_hello(role: str = "worker") -> Hello:
    return hello(role=role, cluster_id="c-1", node="n", worker_id=int(role == "worker"), host="h", pid=4, link_id=bytes(16))


def test_hello_says_the_versions_of_this_process() -> None:
    message = a_hello()
    assert decode(fields_of(message)) == message
    assert (message.protocol, message.version, message.python) == OURS
    assert OURS.python == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert str(OURS) == f"protocol {PROTOCOL}, aiocluster {OURS.aiocluster}, Python {OURS.python}"


def test_peer_of_the_same_versions_and_cluster_may_join() -> None:
    assert check_hello(a_hello(), "c-1") is None
    assert check_hello(a_hello("agent"), "c-1", OURS) is None


@pytest.mark.parametrize(
    ("change", "code"),
    [({"protocol": PROTOCOL + 1}, "protocol"), ({"version": "0.0.9"}, "version"), ({"python": "3.9"}, "version")],
)
def test_peer_of_another_version_is_refused_with_both_named(change: dict[str, object], code: str) -> None:
    message = a_hello()._replace(**change)  # type: ignore[arg-type]
    refused = check_hello(message, "c-1")
    assert refused is not None
    assert refused.code == code
    assert decode(fields_of(refused)) == refused
    assert refused.ours == str(OURS)
    assert refused.theirs == str(Versions(message.protocol, message.version, message.python))


def test_refusal_is_valid_whatever_the_peer_said() -> None:
    message = a_hello()._replace(version="v" * 256, python="p" * 256, cluster_id="c" * 256)
    for refused in (check_hello(message, "c-1"), check_hello(message._replace(protocol=2**64 - 1), "c-1")):
        assert refused is not None
        assert decode(fields_of(refused)) == refused


def test_peer_of_another_cluster_is_refused() -> None:
    refused = check_hello(a_hello(), "c-2")
    assert refused is not None
    assert refused.code == "cluster"
