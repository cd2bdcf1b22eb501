"""`Docker`: nodes are containers of one Docker engine, one for each.

Every container carries the cluster's labels and a name that is known before it is made, so that whatever an engine was asked
for can be found and removed. It removes itself when it ends, also when the manager was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import psutil

from aiocluster.errors import LaunchError
from aiocluster.launch import marks
from aiocluster.launch.base import Launcher, LaunchRequest, agent_environment, checked_env
from aiocluster.launch.container import Container, cancelled
from aiocluster.launch.docker_leftovers import as_launch_errors, end, leftovers, unreachable
from aiocluster.launch.engine import GONE, Engine, EngineError
from aiocluster.launch.own_container import own_container_id
from aiocluster.launch.reach import EVERYWHERE, Reach

__all__ = ["Docker", "end", "leftovers"]

logger = logging.getLogger("aiocluster")

HOST_NETWORK = "host"
LOOPBACK = "127.0.0.1"
IMAGE_VARIABLE = "AIOCLUSTER_DOCKER_IMAGE"
NODE_LABEL = "aiocluster:node"
AT_ONCE = 8
"""Containers that the engine is asked to start at the same time: more of them make none of them faster."""
REMEMBERED = 1000
"""Nodes whose last lines are kept."""
STOP_GRACE_S = 2.0
"""For a node that is lost, or not needed, to end by itself."""
RETRY_S = 1.0
"""Between attempts to hear from an engine again whose connection broke."""


class Docker(Launcher):
    """Nodes are containers of one Docker engine; the manager runs outside of one, or in one that can reach the engine's socket.

    Args:
        image: what the containers are made of; it holds aiocluster and what the calls import. The engine must have it. Default:
            `AIOCLUSTER_DOCKER_IMAGE`, else the image of the container that the manager itself runs in.
        network: a network of the engine. With "host", the default, containers share the network of the engine's machine. A CIDR
            such as "10.0.0.0/16" means that one too, and the manager's address in it (`Reach.network`).
        command: what the image runs; default `aiocluster agent`.
        env: variables for the workers.
        labels: labels for the containers, beside those that all launchers set.
        mounts: folders or volumes to mount, in Docker's words: "/data:/data:ro".
        workers_per_node: workers in each container.
        advertise: the manager's address for the containers. Default: on "host" the first private address of this machine, or
            loopback where it has none; on another network the manager's own address there, else the network's gateway where that
            is this machine.
        host: where the manager listens; default: at that address.
        port: the same for its port; 0 takes a free one.
        engine: the engine's address, such as "unix:///run/docker.sock"; default: `DOCKER_HOST`, Docker's current context, or
            the usual socket.
    """

    name = "docker"
    timeout_s: float | None = 60.0

    def __init__(
        self,
        *,
        image: str | None = None,
        network: str = HOST_NETWORK,
        command: Sequence[str] = ("aiocluster", "agent"),
        env: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        mounts: Sequence[str] = (),
        workers_per_node: int = 1,
        advertise: str | None = None,
        host: str | None = None,
        port: int = 0,
        engine: str | None = None,
    ) -> None:
        if workers_per_node < 1:
            raise ValueError(f"workers_per_node must be at least 1, not {workers_per_node}")
        if network == "none":
            raise ValueError("network='none': containers without a network cannot reach the manager")
        self.workers_per_node = workers_per_node
        within = network if "/" in network else None  # which no name of a network has
        self.reach = Reach(advertise=advertise, host=host, port=port, network=within)
        self._network = HOST_NETWORK if within else network
        self._image = image or os.environ.get(IMAGE_VARIABLE) or None
        self._command = list(command)
        self._env = checked_env(env)
        self._labels = dict(labels or {})
        self._mounts = list(mounts)
        self._engine_host = engine
        self._engine: Engine | None = None
        self._opening = asyncio.Lock()
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._containers: dict[str, Container] = {}
        """Those that may be there, by their names."""
        self._nodes: dict[str, Container] = {}
        """Those and the latest others, by their nodes: a launch that failed tells their last lines."""
        self._cluster = ""
        self._watching: asyncio.Task[None] | None = None
        self._heard = True
        """The engine has been heard since the last complaint about it."""
        self._heard_until = 0.0
        """By the engine's clock."""

    # --- before --------------------------------------------------------------------------------------------------------------

    def _connect(self) -> Engine:
        return Engine(self._engine_host)

    async def _reached(self) -> Engine:
        async with self._opening:
            if self._engine is None:
                engine = self._connect()
                try:
                    await engine.open()
                except EngineError as error:
                    raise unreachable(engine, error) from error
                self._engine = engine
            return self._engine

    async def find_reach(self) -> Reach:
        reach = self.reach
        assert reach is not None
        if reach.advertise is not None or reach.network is not None:
            return reach
        if self._network == HOST_NETWORK:
            try:
                reach.choose()
            except LaunchError:  # no address but loopback, which all on this network share
                host = reach.host or LOOPBACK
                if host not in EVERYWHERE and not _is_loopback(host):
                    raise
                return replace(reach, advertise=LOOPBACK if host in EVERYWHERE else host)
            return reach
        if reach.host is not None and reach.host not in EVERYWHERE:
            reach.choose()  # says what is wrong with it
            return reach
        address = await self._address_on_network(await self._reached())
        return reach if address is None else replace(reach, advertise=address, host=reach.host or address)

    async def _address_on_network(self, engine: Engine) -> str | None:
        """The manager's address on the containers' network; None if it cannot be told."""
        with as_launch_errors():
            own = await self._own_container(engine)
            if own is not None:
                address = own["NetworkSettings"]["Networks"].get(self._network, {}).get("IPAddress")
                if address:
                    return str(address)
            try:
                about = await engine.network(self._network)
            except EngineError as error:
                if error.status == GONE:
                    raise LaunchError(
                        f"the engine has no network {self._network}: `docker network create {self._network}` makes one"
                    ) from error
                raise
        mine = {one.address for addresses in psutil.net_if_addrs().values() for one in addresses}
        gateways = [str(pool.get("Gateway", "")).partition("/")[0] for pool in about["IPAM"]["Config"] or ()]
        return next((gateway for gateway in gateways if gateway in mine), None)

    @staticmethod
    async def _own_container(engine: Engine) -> dict[str, Any] | None:
        id = own_container_id()
        return None if id is None else await engine.inspect(id)

    async def _image_id(self, engine: Engine) -> str:
        if self._image is None:
            own = await self._own_container(engine)
            if own is None:
                raise LaunchError(
                    "image= is needed: it is that of the manager's own container by default, "
                    f"and this process runs in none that the engine at {engine.host} knows"
                )
            return str(own["Image"])
        try:
            return await engine.image_id(self._image)
        except EngineError as error:
            if error.status == GONE:
                raise LaunchError(
                    f"no such image: the engine at {engine.host} does not have {self._image}; "
                    f"`docker pull {self._image}` gets it, `docker build --tag {self._image} .` makes it"
                ) from error
            raise

    # --- nodes ---------------------------------------------------------------------------------------------------------------

    async def start(self, request: LaunchRequest) -> None:
        engine = await self._reached()
        with as_launch_errors():
            image = await self._image_id(engine)
        self._watch(engine, request.cluster_id)
        tags = await marks.tags(request.cluster_id)
        begun = []
        for node in request.nodes:
            name = f"aiocluster-{request.cluster_id}-{node}"
            container = Container(node, name, self._config(request, node, image, tags), request)
            self._containers[name] = self._nodes[node] = container  # from now on it is found by `stop` and `close`
            container.begin(engine, self._slots, self._ended)
            begun.append(container)
        logger.info("starting %d containers of %s on the engine at %s", len(begun), self._image or image, engine.host)
        for container in begun:
            await container.begun.wait()

    def _config(self, request: LaunchRequest, node: str, image: str, tags: Mapping[str, str]) -> dict[str, Any]:
        environment = {**self._env, **agent_environment(request, node)}
        return {
            "Image": image,
            "Cmd": self._command,
            "Env": [f"{name}={value}" for name, value in environment.items()],
            "Labels": {**self._labels, **tags, NODE_LABEL: node},
            "AttachStdout": True,
            "AttachStderr": True,
            "HostConfig": {"AutoRemove": True, "NetworkMode": self._network, "Binds": self._mounts},
        }

    def _ended(self, container: Container) -> None:
        self._containers.pop(container.name, None)
        for node, other in list(self._nodes.items())[: max(0, len(self._nodes) - REMEMBERED)]:
            if other.name not in self._containers:
                del self._nodes[node]

    def last_lines(self, node: str) -> Sequence[str]:
        container = self._nodes.get(node)
        return () if container is None else container.lines.tail()

    async def stop(self, node: str, *, lost: bool = False) -> None:
        container = self._nodes.get(node)
        if container is not None and container.name in self._containers:
            assert self._engine is not None
            with as_launch_errors(f"node {node} could not be stopped"):
                await container.stop(self._engine, STOP_GRACE_S)

    async def close(self, grace_s: float) -> None:
        engine = self._engine
        if engine is None:
            return
        containers = list(self._containers.values())
        try:
            ending = [container.close(engine, grace_s + STOP_GRACE_S) for container in containers]
            await asyncio.gather(*ending, return_exceptions=True)  # what could not be removed is tried once more here
            if self._cluster:  # also what was asked for by a request whose reply was lost
                await self._sweep(engine)
        finally:
            self._engine = None
            for container in list(self._containers.values()):
                await container.abandon()
            if self._watching is not None:
                await cancelled(self._watching)
                self._watching = None
            await engine.close()

    async def _sweep(self, engine: Engine) -> None:
        """No container of the cluster is there any more, known or not."""
        with as_launch_errors(f"nobody knows whether all containers are removed from {engine.host}; `aiocluster ls` tells"):
            found = await engine.labelled(f"{marks.CLUSTER}={self._cluster}")
        outcomes = await asyncio.gather(*[engine.remove(one.id) for one in found], return_exceptions=True)
        failed = [f"{one.name}: {error or type(error).__name__}" for one, error in zip(found, outcomes) if error is not None]
        if failed:
            told = "; ".join(failed)
            raise LaunchError(f"containers that could not be removed from {engine.host}: {told}. `aiocluster reap` tries again")

    # --- events --------------------------------------------------------------------------------------------------------------

    def _watch(self, engine: Engine, cluster: str) -> None:
        if self._watching is None:
            self._cluster = cluster
            self._watching = asyncio.get_running_loop().create_task(
                self._follow(engine, f"{marks.CLUSTER}={cluster}"), name=f"aiocluster docker: watch {cluster}"
            )

    async def _follow(self, engine: Engine, label: str) -> None:
        """Hand on what happens to the containers; wherever the connection breaks, look at them and connect again."""
        self._heard_until = engine.started_at
        while True:
            # Looked at each time: an engine that was started anew tells nothing of what happened before.
            for step in (partial(self._listen, engine, label), partial(self._look_at_all, engine)):
                try:
                    await step()
                except EngineError as error:
                    if self._heard:  # once for each time that it goes away
                        logger.warning("the Docker engine at %s cannot be heard: %s", engine.host, error)
                    self._heard = False
                except Exception:
                    if self._heard:
                        logger.exception("what the Docker engine at %s tells cannot be understood", engine.host)
                    self._heard = False
            await asyncio.sleep(RETRY_S)

    async def _listen(self, engine: Engine, label: str) -> None:
        async with contextlib.aclosing(engine.events(label, self._heard_until)) as events:
            async for event in events:
                self._heard_until, self._heard = event.at, True
                container = self._containers.get(event.name)
                if container is not None:
                    container.happened(event)

    async def _look_at_all(self, engine: Engine) -> None:
        for container in list(self._containers.values()):
            if container.begun.is_set():
                container.found(await engine.state(container.name))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
