"""What an agent is told by whoever starts it: variables of its environment, taken out before it starts anything itself."""

from __future__ import annotations

import os
from collections.abc import Mapping

from aiocluster.ids import Token
from aiocluster.launch.naming import node_name

__all__ = ["AgentSettings", "metadata_endpoint"]

DIAL_FOR_S = 60.0
METADATA_ENDPOINT = "http://169.254.169.254"
"""Of every EC2 instance."""


class AgentSettings:
    """What the launcher put into the agent's environment, and taken out of it: the token is not for a worker's children."""

    def __init__(self, environ: dict[str, str] | os._Environ[str]) -> None:
        self.dial_for_s = DIAL_FOR_S
        """How long an agent tries to reach a manager that does not listen yet."""
        if "AWS_BATCH_JOB_MAIN_NODE_INDEX" in environ:
            from aiocluster.launch import multinode  # only there: derived secrets need a library that takes its time to import

            if known := multinode.member_environment(environ):
                environ.update(known)
                self.dial_for_s = multinode.DIAL_FOR_S
        self.address = _required(environ, "AIOCLUSTER_MANAGER")
        self.cluster_id = _required(environ, "AIOCLUSTER_CLUSTER")
        self.node = node_name(_required(environ, "AIOCLUSTER_NODE"), environ)
        self.token = _token(environ)
        self.metadata_endpoint = metadata_endpoint(environ)
        self.reclaimed_code = int(environ.get("AIOCLUSTER_RECLAIMED_CODE", "0"))
        """The exit code after a spot notice: infrastructure may start another node only in the place of one that failed."""
        sys_path = environ.get("AIOCLUSTER_SYS_PATH")
        self.sys_path = None if sys_path is None else tuple(sys_path.split(os.pathsep))
        for name in (
            "AIOCLUSTER_TOKEN",
            "AIOCLUSTER_TOKEN_FROM",
            "AIOCLUSTER_RECLAIMED_CODE",
            "AIOCLUSTER_MANAGER",
            "AIOCLUSTER_SYS_PATH",
        ):
            environ.pop(name, None)
        # Where the launcher had to say where aiocluster is: that was for the agent alone.
        python_path = environ.pop("AIOCLUSTER_PYTHONPATH", None)
        if python_path:
            environ["PYTHONPATH"] = python_path
        elif python_path is not None:
            environ.pop("PYTHONPATH", None)


def _token(environ: dict[str, str] | os._Environ[str]) -> Token:
    reference = environ.get("AIOCLUSTER_TOKEN_FROM")
    if not reference:
        return Token.from_hex(_required(environ, "AIOCLUSTER_TOKEN"))
    from aiocluster.launch.secret_store import token_from  # only where it is in a store: a client of AWS takes its time to import

    return token_from(reference, environ)


def _required(environ: dict[str, str] | os._Environ[str], name: str) -> str:
    value = environ.get(name)
    if not value:
        raise ValueError(f"{name} is not set: an agent is started by a launcher, which sets it")
    return value


def metadata_endpoint(environ: Mapping[str, str]) -> str | None:
    """Where to ask for notices: None outside of AWS, and where the environment forbids to ask.

    Source: the variables of the AWS SDKs and of the ECS agent.
    """
    if environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return None
    given = environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT")
    if given:
        return given.rstrip("/")
    surroundings = ("AWS_BATCH_JOB_ID", "ECS_CONTAINER_METADATA_URI_V4")
    return METADATA_ENDPOINT if any(environ.get(variable) for variable in surroundings) else None
