"""Names of things, and the secret that must not show."""

from __future__ import annotations

import copy
import logging
import pickle
import re

import pytest

from aiocluster.ids import MANAGER_ID, Token, new_cluster_id, new_link_id

SECRET = bytes(range(32))


def test_the_manager_is_number_0() -> None:
    assert MANAGER_ID == 0


def test_cluster_ids_are_short_words_and_differ() -> None:
    ids = {new_cluster_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(re.fullmatch(r"c-[0-9a-f]{12}", name) for name in ids)


def test_link_ids_have_16_bytes_and_differ() -> None:
    ids = {new_link_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert {len(name) for name in ids} == {16}


class TestToken:
    def test_has_256_bits_that_nobody_else_has(self) -> None:
        first, second = Token.generate(), Token.generate()
        assert len(first.reveal()) == 32
        assert first != second

    def test_travels_as_hexadecimal_digits(self) -> None:
        assert Token.from_hex(SECRET.hex()) == Token(SECRET)
        assert Token(SECRET).reveal() == SECRET

    @pytest.mark.parametrize("length", [0, 1, 31, 33, 64])
    def test_of_another_length_is_refused(self, length: int) -> None:
        with pytest.raises(ValueError, match=f"^a cluster token has 32 bytes, not {length}$"):
            Token(bytes(length))

    @pytest.mark.parametrize("text", ["", "00", "g" * 64, SECRET.hex() + "00", SECRET.hex()[:-1], "geheim"])
    def test_bad_hexadecimal_digits_are_refused_and_not_repeated(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"^a cluster token is 64 hexadecimal digits$") as caught:
            Token.from_hex(text)
        assert caught.value.__suppress_context__  # the cause may quote what was given

    def test_never_shows(self, caplog: pytest.LogCaptureFixture) -> None:
        token = Token(SECRET)
        logging.getLogger("test").warning("%s %r %s", token, token, [token])
        for text in (str(token), repr(token), f"{token}", f"{token!r:>20}", caplog.text):
            assert SECRET.hex() not in text
            assert repr(SECRET) not in text
        assert repr(token) == "Token(hidden)"

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_does_not_pickle(self, protocol: int) -> None:
        with pytest.raises(TypeError, match="does not pickle"):
            pickle.dumps(Token(SECRET), protocol)

    def test_is_not_copied_either(self) -> None:
        with pytest.raises(TypeError, match="does not pickle"):
            copy.copy(Token(SECRET))

    def test_is_no_key(self) -> None:
        with pytest.raises(TypeError, match="unhashable"):
            hash(Token(SECRET))

    def test_is_equal_to_the_same_token_only(self) -> None:
        assert Token(SECRET) == Token(SECRET)
        assert Token(SECRET) != Token(SECRET[::-1])
        assert Token(SECRET) != SECRET
        assert Token(SECRET) != SECRET
