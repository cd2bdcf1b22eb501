"""What all nodes of a multi-node parallel job of AWS Batch know by themselves: where their manager is, its token, their names.

The nodes start together. Nobody can hand an agent anything, so both sides derive the same from the variables of the job.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from aiocluster.ids import ClusterId, Token
from aiocluster.launch.base import Agreed
from aiocluster.launch.own_job import OwnJob, own_job
from aiocluster.launch.reach import interfaces, usable

__all__ = ["DIAL_FOR_S", "NODE", "PORT", "agreed_in", "indexes", "manager_port", "member_environment"]

NODE = "node"
"""How the names of nodes begin; the number after it counts the nodes from 1, the main node left out."""
PORT = 49152
"""The first of the ports that are nobody's. Source: RFC 6335, section 6."""
DIAL_FOR_S = 120.0
"""For an agent whose manager has not begun to listen: nodes of one job start minutes apart."""
_SALT = b"aiocluster multi-node job"


def agreed_in(job: OwnJob, environ: Mapping[str, str]) -> Agreed:
    """The cluster's id and token: those of the environment, else derived from the id of the job.

    The id of a job is a random UUID. The members of the job know it, and who may describe it in the account; the same people read
    the environment of a job, where tokens travel otherwise. A secret of the job definition is known to fewer.

    Raises:
        ValueError: the token in the environment is none.
    """
    secret = environ.get("AIOCLUSTER_TOKEN")
    token = Token.from_hex(secret) if secret else Token(_derived(job, b"token", 32))
    return Agreed(ClusterId(environ.get("AIOCLUSTER_CLUSTER") or f"c-{_derived(job, b'cluster', 6).hex()}"), token)


def _derived(job: OwnJob, purpose: bytes, size: int) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    # The attempt belongs to it: what an earlier one left behind must not join.
    material = f"{job.parent_id} {job.attempt}".encode()
    return HKDF(SHA256(), size, salt=_SALT, info=purpose).derive(material)


def indexes(job: OwnJob) -> list[int]:
    """The node indexes of the agents, in the order of their names."""
    return [index for index in range(job.nodes or 0) if index != job.main_node_index]


def manager_port(environ: Mapping[str, str]) -> int:
    """Where the manager listens: `AIOCLUSTER_PORT`, which all nodes of a job definition can have, else 49152."""
    text = environ.get("AIOCLUSTER_PORT") or str(PORT)
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise ValueError(f"AIOCLUSTER_PORT={text!r} is no port")
    return int(text)


def member_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What a launcher would have told this agent; nothing outside of a multi-node job, or where a launcher has.

    Raises:
        ValueError: this is the main node, or nobody could reach the address that it is said to have.
    """
    job = own_job(environ)
    if environ.get("AIOCLUSTER_MANAGER") or job is None or job.node_index is None:
        return {}
    if job.node_index == job.main_node_index:
        raise ValueError(
            "this is the main node of a multi-node job: it runs the manager, `Cluster.batch_nodes()`, and not an agent"
        )
    address = job.main_node_address
    if address is None:
        raise ValueError("AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS is not set: where the manager is cannot be known")
    if ipaddress.ip_address(address).is_link_local:
        raise ValueError(
            f"the main node's address {address} is link-local, no other node reaches it; give the job's containers the network "
            f"of their host, or one of awsvpc; {usable(interfaces())}"
        )
    cluster_id, token = agreed_in(job, environ)
    return {
        "AIOCLUSTER_MANAGER": f"tcp://{address}:{manager_port(environ)}",
        "AIOCLUSTER_CLUSTER": cluster_id,
        "AIOCLUSTER_TOKEN": token.reveal().hex(),
        "AIOCLUSTER_NODE": f"{NODE}-{indexes(job).index(job.node_index) + 1}",
    }
