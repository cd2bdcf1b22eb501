"""How nodes elsewhere reach the manager: which of its addresses they are told, and where it listens."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil

from aiocluster.errors import LaunchError

__all__ = ["EVERYWHERE", "Reach", "interfaces", "usable"]

_PORT = re.compile(r"(?P<host>\[[^\[\]]+\]|[^\[\]:]+)(?::(?P<port>[0-9]{1,5}))?")

Interfaces = Mapping[str, Sequence[str]]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  # as hosts to listen at


@dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """The manager's address for nodes that are not on its machine.

    Args:
        advertise: what they dial, as a host or `host:port`, where that is not an address of this machine: behind a load balancer,
            a port mapping, another network. Default: `host` if that is one address, else the first private IPv4 address that is
            not link-local.
        host: where the manager listens; default: at the advertised address if it is this machine's, else at all of them.
        port: the same for its port; 0 takes a free one.
        network: a CIDR such as "10.0.0.0/16" that the advertised address must be in, for machines with several networks.
    """

    advertise: str | None = None
    host: str | None = None
    port: int = 0
    network: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be between 0 and 65535, not {self.port}")
        if self.network is not None:
            try:
                ipaddress.ip_network(self.network)
            except ValueError as error:
                raise ValueError(f"network must be a CIDR such as 10.0.0.0/16: {error}") from None
        if self.advertise is not None and not _PORT.fullmatch(self.advertise):
            raise ValueError(f"advertise must be a host or host:port (an IPv6 address in brackets), not {self.advertise!r}")
        if not 1 <= self.told_port(1) <= 65535:
            raise ValueError(f"advertise must name a port between 1 and 65535, not {self.advertise!r}")

    def choose(self, found: Interfaces | None = None) -> tuple[str, str]:
        """The host that nodes are told, and the one to listen at.

        Args:
            found: the addresses of this machine by interface; default: those that it has.

        Raises:
            LaunchError: there is no address that others could reach; the text lists what there is.
        """
        found = interfaces() if found is None else found
        mine = {address for addresses in found.values() for address in addresses}
        told = self._advertised(found)
        if self.host is not None:
            return told, self.host
        if told in mine:
            return told, told
        return told, "::" if ":" in told else "0.0.0.0"  # noqa: S104  # behind a mapping, any of them may be meant

    def told_port(self, listening: int) -> int:
        """The port that nodes are told, where the manager listens at that one."""
        match = None if self.advertise is None else _PORT.fullmatch(self.advertise)
        return listening if match is None or match["port"] is None else int(match["port"])

    def _advertised(self, found: Interfaces) -> str:
        network = None if self.network is None else ipaddress.ip_network(self.network)
        if self.advertise is not None:
            match = _PORT.fullmatch(self.advertise)
            assert match is not None
            return self._told("advertise", match["host"].strip("[]"), network, found)
        if self.host is not None and self.host not in EVERYWHERE:
            return self._told("host", self.host, network, found)
        for addresses in found.values():
            for text in addresses:
                address = ipaddress.ip_address(text)
                if address.is_link_local or address.is_unspecified:
                    continue
                if network is not None:
                    if address in network:
                        return text
                elif address.version == 4 and address.is_private and not address.is_loopback:
                    return text
        wanted = "a private IPv4 address" if network is None else f"an address in network={self.network}"
        raise LaunchError(f"this machine has no interface with {wanted} that nodes could reach; {usable(found)}")

    def _told(self, argument: str, host: str, network: Network | None, found: Interfaces) -> str:
        """The host that was given, if nodes elsewhere may reach it."""
        given = getattr(self, argument)
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return host  # a name: what it stands for is known where it is dialled
        if address.is_link_local or address.is_unspecified:
            kind = "link-local" if address.is_link_local else "not an address of one machine"
            raise LaunchError(f"{argument}={given}: {host} is {kind}, nobody else reaches it; {usable(found)}")
        if address.is_loopback and argument == "host":  # who advertises it knows that nodes are here, or have a tunnel
            raise LaunchError(
                f"host={given}: nodes elsewhere reach no loopback address; advertise= says what they are to dial; {usable(found)}"
            )
        if network is not None and address not in network:
            raise LaunchError(f"{argument}={given} is not in network={self.network}; {usable(found)}")
        return host


def interfaces() -> dict[str, list[str]]:
    """The addresses of this machine by interface, IPv4 first, in the order of the interfaces; those that are down left out."""
    stats = psutil.net_if_stats()
    found: dict[str, list[str]] = {}
    for name, addresses in psutil.net_if_addrs().items():
        if name in stats and not stats[name].isup:
            continue
        four = [one.address for one in addresses if one.family == socket.AF_INET]
        six = [one.address.split("%")[0] for one in addresses if one.family == socket.AF_INET6]
        found[name] = four + six
    return found


def usable(found: Interfaces) -> str:
    """The interfaces that others might reach, in words, and what to do with them."""
    rows = []
    for name, addresses in found.items():
        usable = [text for text in addresses if not ipaddress.ip_address(text).is_link_local]
        if usable:
            rows.append(f"{name} {', '.join(usable)}")
    listed = "; ".join(rows) if rows else "none"
    return f"usable interfaces: {listed}. Name one of them with advertise=, or its network with network="
