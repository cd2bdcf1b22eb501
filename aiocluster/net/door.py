"""Who may wait before the gate, and who has to go when too many do. Plain counting: no sockets, no clock."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["Door"]

Visitor = TypeVar("Visitor", bound=Hashable)


class Door(Generic[Visitor]):
    """Bounds how many connections wait to be welcomed, in all and from one address, so that none can lock others out.

    Where it is full, the one that has waited longest without showing that it knows the token has to go, from the same
    address if that is what is full. So silent peers hold a place only until somebody else needs it. Whoever has passed the
    gate is never sent away; if all have, the new one is.
    """

    def __init__(self, limit: int, limit_per_address: int) -> None:
        if limit < 1 or limit_per_address < 1:
            raise ValueError("the limits of a door must be positive")
        self._limit = limit
        self._limit_per_address = limit_per_address
        self._waiting: dict[Visitor, str | None] = {}
        self._proven: dict[Visitor, str | None] = {}
        self._by_address: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._proven)

    def visitors(self) -> list[Visitor]:
        """All of them, the longest there first among those before the gate, then those behind it."""
        return [*self._waiting, *self._proven]

    def enter(self, visitor: Visitor, address: str | None) -> Visitor | None:
        """A new connection, from an address that counts or from none. Gives who has to go: another, the new one, or nobody.

        Whoever has to go is not counted any more.
        """
        victim = self._victim(visitor, address)
        if victim is not None and victim != visitor:
            self.leave(victim)
        if victim != visitor:
            self._waiting[visitor] = address
            if address is not None:
                self._by_address[address] = self._by_address.get(address, 0) + 1
        return victim

    def _victim(self, visitor: Visitor, address: str | None) -> Visitor | None:
        if address is not None and self._by_address.get(address, 0) >= self._limit_per_address:
            return next((other for other, whose in self._waiting.items() if whose == address), visitor)
        if len(self) >= self._limit:
            return next(iter(self._waiting), visitor)
        return None

    def prove(self, visitor: Visitor) -> None:
        """It has passed the gate."""
        self._proven[visitor] = self._waiting.pop(visitor)

    def leave(self, visitor: Visitor) -> None:
        """It is welcomed, refused or gone. Leaving twice changes nothing."""
        if visitor in self._waiting:
            address = self._waiting.pop(visitor)
        elif visitor in self._proven:
            address = self._proven.pop(visitor)
        else:
            return
        if address is not None:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]
