"""Which of the manager's addresses nodes elsewhere are told."""

from __future__ import annotations

import ipaddress

import pytest

from aiocluster.errors import LaunchError
from aiocluster.launch.reach import Reach, interfaces

MACHINE = {
    "lo": ["127.0.0.1", "::1"],
    "ecs0": ["169.254.172.2", "fe80::1"],
    "eth0": ["203.0.114.7", "fe80::2"],
    "eth1": ["10.1.2.3", "fd00::3"],
    "docker0": ["172.17.0.1"],
}


@pytest.mark.parametrize(
    ("reach", "told", "listening"),
    [
        (Reach(), "10.1.2.3", "10.1.2.3"),
        (Reach(network="172.16.0.0/12"), "172.17.0.1", "172.17.0.1"),
        (Reach(network="127.0.0.0/8"), "127.0.0.1", "127.0.0.1"),
        (Reach(network="fd00::/8"), "fd00::3", "fd00::3"),
        (Reach(advertise="203.0.114.7"), "203.0.114.7", "203.0.114.7"),
        (Reach(advertise="198.51.101.1:7000"), "198.51.101.1", "0.0.0.0"),  # noqa: S104
        (Reach(advertise="manager.example"), "manager.example", "0.0.0.0"),  # noqa: S104
        (Reach(advertise="[2001:db9::1]:7000"), "2001:db9::1", "::"),
        (Reach(host="172.17.0.1"), "172.17.0.1", "172.17.0.1"),
        (Reach(host="0.0.0.0"), "10.1.2.3", "0.0.0.0"),  # noqa: S104
        (Reach(host="here.example"), "here.example", "here.example"),
        (Reach(host="127.0.0.1", advertise="198.51.101.1:7000"), "198.51.101.1", "127.0.0.1"),
        (Reach(advertise="127.0.0.1"), "127.0.0.1", "127.0.0.1"),
    ],
)
def test_the_address_that_nodes_are_told(reach: Reach, told: str, listening: str) -> None:
    assert reach.choose(MACHINE) == (told, listening)


def test_a_port_mapping_is_told_in_place_of_the_port() -> None:
    assert Reach(advertise="198.51.101.1:7000").told_port(5) == 7000
    assert Reach(advertise="198.51.101.1").told_port(5) == 5
    assert Reach().told_port(5) == 5


@pytest.mark.parametrize(
    "reach", [Reach(network="169.254.0.0/16"), Reach(advertise="169.254.172.2"), Reach(advertise="[fe80::1]")]
)
def test_link_local_addresses_are_refused_with_the_usable_interfaces(reach: Reach) -> None:
    with pytest.raises(LaunchError) as caught:
        reach.choose(MACHINE)
    text = str(caught.value)
    assert "usable interfaces: lo 127.0.0.1, ::1; eth0 203.0.114.7; eth1 10.1.2.3, fd00::3; docker0 172.17.0.1." in text
    assert "advertise=" in text


def test_who_listens_on_loopback_alone_has_to_say_what_nodes_dial() -> None:
    with pytest.raises(LaunchError, match=r"host=127\.0\.0\.1: nodes elsewhere reach no loopback address.*advertise="):
        Reach(host="127.0.0.1").choose(MACHINE)


@pytest.mark.parametrize("port", [0, 65536, 99999])
def test_a_port_that_is_none_is_refused(port: int) -> None:
    with pytest.raises(ValueError, match="between 1 and 65535"):
        Reach(advertise=f"198.51.101.1:{port}")


def test_an_address_outside_the_network_is_refused() -> None:
    with pytest.raises(LaunchError, match=r"not in network=10\.0\.0\.0/8"):
        Reach(advertise="192.168.1.1", network="10.0.0.0/8").choose(MACHINE)


@pytest.mark.parametrize("address", ["0.0.0.0", "[::]"])  # noqa: S104
def test_a_wildcard_is_no_address_to_tell(address: str) -> None:
    with pytest.raises(LaunchError, match="not an address of one machine"):
        Reach(advertise=address).choose(MACHINE)


def test_a_machine_without_a_private_address_says_so() -> None:
    with pytest.raises(LaunchError, match="no interface with a private IPv4 address"):
        Reach().choose({"lo": ["127.0.0.1"], "eth0": ["203.0.114.7", "169.254.1.1"]})


@pytest.mark.parametrize("arguments", [{"port": 65536}, {"port": -1}, {"network": "10.0.0.0/33"}, {"advertise": "a:b:c"}])
def test_arguments_that_make_no_sense_are_refused_at_once(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Reach(**arguments)  # type: ignore[arg-type]


def test_this_machine_has_a_loopback_interface() -> None:
    assert any(ipaddress.ip_address(text).is_loopback for addresses in interfaces().values() for text in addresses)
