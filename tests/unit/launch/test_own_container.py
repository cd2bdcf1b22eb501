"""Which container a process runs in, by what the kernel shows of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiocluster.launch.own_container import id_from_cgroup, id_from_hostname, id_from_mountinfo, own_container_id

ID = "b45e59edf7c914e5ededb38093b8631bc5ea9b825d99cda28275c50eb8393853"
OTHER = "0f11223344556677889900aabbccddeeff00112233445566778899aabbccddee"
TASK = "cd189a933e5849daa93386466019ab50"

HOST_MOUNTS = """\
22 28 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
28 1 259:1 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p1 rw,discard
812 28 0:52 / /var/lib/docker/overlay2/3a1f/merged rw,relatime shared:411 - overlay overlay rw
830 28 0:60 / /var/lib/docker/containers/{id}/mounts/shm rw,nosuid,nodev shared:420 - tmpfs shm rw,size=65536k
""".replace("{id}", ID)

ENGINE_MOUNTS = """\
77 60 0:41 / / rw,relatime - overlay overlay rw,lowerdir=/data/overlay2/l/W5,upperdir=/data/overlay2/9/diff
93 82 0:46 / /dev/shm rw,nosuid,nodev,noexec,relatime - tmpfs shm rw,size=65536k
94 77 254:0 /data/containers/{id}/resolv.conf /etc/resolv.conf rw,relatime - ext4 /dev/vda rw,discard
95 77 254:0 /data/containers/{id}/hostname /etc/hostname rw,relatime - ext4 /dev/vda rw,discard
96 77 254:0 /data/containers/{id}/hosts /etc/hosts rw,relatime - ext4 /dev/vda rw,discard
""".replace("{id}", ID)

PODMAN_MOUNTS = (
    f"733 729 0:24 /containers/overlay-containers/{ID}/userdata/hostname /etc/hostname "
    "rw,nosuid,nodev,relatime - tmpfs tmpfs rw,size=809180k\n"
)
OWN_HOSTS_FILE = f"""\
96 77 254:0 /home/somebody/hosts /etc/hosts rw,relatime - ext4 /dev/vda rw
95 77 254:0 /var/lib/docker/containers/{ID}/hostname /etc/hostname rw,relatime - ext4 /dev/vda rw
"""
LIBRARY_OF_ANOTHER = f"120 77 254:0 /var/lib/docker/containers/{OTHER}/hosts /mnt/hosts ro,relatime - ext4 /dev/vda rw\n"
KUBERNETES_MOUNTS = (
    "1301 1274 259:1 /var/lib/kubelet/pods/3f0c8e1a-5c5e-4a08-9d5d-6f8f3bb3ad5a/etc-hosts /etc/hosts rw - xfs /dev/vda rw\n"
)


@pytest.mark.parametrize(
    ("text", "id"),
    [
        pytest.param(ENGINE_MOUNTS, ID, id="docker"),
        pytest.param(PODMAN_MOUNTS, ID, id="podman"),
        pytest.param(OWN_HOSTS_FILE, ID, id="one of the files is the user's own"),
        pytest.param(HOST_MOUNTS, None, id="the engine's machine"),
        pytest.param(LIBRARY_OF_ANOTHER, None, id="a file of another container"),
        pytest.param(KUBERNETES_MOUNTS, None, id="kubernetes"),
        pytest.param("", None, id="empty"),
        pytest.param("what\nis this\n", None, id="something else"),
    ],
)
def test_mounts_tell_the_container(text: str, id: str | None) -> None:
    assert id_from_mountinfo(text) == id


@pytest.mark.parametrize(
    ("text", "id"),
    [
        pytest.param(f"9:name=systemd:/docker/{ID}\n8:pids:/docker/{ID}\n", ID, id="docker, version 1"),
        pytest.param(f"12:memory:/system.slice/docker-{ID}.scope\n", ID, id="docker by systemd, version 1"),
        pytest.param(f"0::/system.slice/docker-{ID}.scope\n", ID, id="docker by systemd, version 2, the host's namespace"),
        pytest.param(f"4:cpu:/docker/{OTHER}/docker/{ID}\n", ID, id="docker in docker"),
        pytest.param(f"4:cpu:/docker/{OTHER}/docker/{ID}/init\n", ID, id="docker in docker, a group below"),
        pytest.param(f"11:cpuset:/ecs/{TASK}/{ID}\n", ID, id="ecs and batch on ec2"),
        pytest.param(f"11:cpuset:/ecs/my-cluster/{TASK}/{ID}\n", ID, id="ecs on ec2, with the cluster's name"),
        pytest.param(f"0::/ecstasks.slice/ecstasks-{TASK}.slice/docker-{ID}.scope\n", ID, id="ecs on ec2, version 2"),
        pytest.param(f"8:pids:/ecs/{TASK}/{TASK}-2495160603\n", f"{TASK}-2495160603", id="fargate"),
        pytest.param(f"10:devices:/kubepods/burstable/pod3f0c8e1a/{ID}\n", ID, id="kubernetes"),
        pytest.param(f"0::/../cri-containerd-{ID}.scope\n", ID, id="containerd by systemd"),
        pytest.param(f"1:name=systemd:/\n8:pids:/docker/{ID}\n", ID, id="not in every group"),
        pytest.param("0::/\n", None, id="version 2, a namespace of its own"),
        pytest.param("9:name=systemd:/user.slice/user-1000.slice/session-3.scope\n0::/\n", None, id="a session on a machine"),
        pytest.param(f"0::/machine.slice/{ID[:40]}.scope\n", None, id="another kind of id"),
        pytest.param(f"0::/app-{ID}-more\n", None, id="a longer name"),
        pytest.param("", None, id="empty"),
        pytest.param("no colons here\n", None, id="something else"),
    ],
)
def test_groups_tell_the_container(text: str, id: str | None) -> None:
    assert id_from_cgroup(text) == id


@pytest.mark.parametrize(
    ("name", "id"),
    [(ID[:12], ID[:12]), ("ip-10-0-0-7", None), (ID, None), ("B45E59EDF7C9", None), ("", None)],
)
def test_a_host_name_may_be_the_beginning_of_an_id(name: str, id: str | None) -> None:
    assert id_from_hostname(name) == id


def machine(root: Path, *, mounts: str | None = None, groups: str | None = None, docker: bool = False) -> Path:
    (root / "proc/self").mkdir(parents=True)
    for name, text in (("mountinfo", mounts), ("cgroup", groups)):
        if text is not None:
            (root / "proc/self" / name).write_text(text)
    if docker:
        (root / ".dockerenv").touch()
    return root


def test_mounts_go_before_groups(tmp_path: Path) -> None:
    assert own_container_id(machine(tmp_path, mounts=ENGINE_MOUNTS, groups=f"1:pids:/docker/{OTHER}\n")) == ID


def test_groups_help_where_mounts_say_nothing(tmp_path: Path) -> None:
    assert own_container_id(machine(tmp_path, mounts=KUBERNETES_MOUNTS, groups=f"1:pids:/docker/{OTHER}\n")) == OTHER


def test_what_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    assert own_container_id(tmp_path) is None


def test_the_host_name_counts_only_where_docker_has_left_its_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: ID[:12])
    assert own_container_id(machine(tmp_path, mounts="", groups="0::/\n")) is None
    (tmp_path / ".dockerenv").touch()
    assert own_container_id(tmp_path) == ID[:12]
