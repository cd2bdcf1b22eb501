"""Where the results of a job are, by what its submitter has told AWS Batch of it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from aiocluster.errors import LaunchError
from aiocluster.launch.aws import Api, Aws

__all__ = ["TAG", "VARIABLE", "Bucket", "place_of", "results_of", "where_results_are"]

TAG = "aiocluster:results"
VARIABLE = "AIOCLUSTER_RESULTS"
_S3 = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>.*))?", re.DOTALL)
_JOB_ID = re.compile(r"(?P<id>[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})([:#][0-9]+)?")


class Bucket(NamedTuple):
    """A place in S3."""

    bucket: str
    prefix: str
    """Without slashes at its ends."""


def place_of(text: str) -> Bucket | Path:
    """A folder, or the place in S3 that `s3://bucket/prefix` stands for. Raises `ValueError` for what is neither."""
    if "://" not in text:
        return Path(text)
    match = _S3.fullmatch(text)
    prefix = (match["prefix"] or "").strip("/") if match else ""
    if match is None or not prefix.isprintable() or any(part in ("", ".", "..") for part in prefix.split("/") if prefix):
        raise ValueError(f"{text!r} is neither a folder nor s3://bucket/prefix")
    return Bucket(match["bucket"], prefix)


async def where_results_are(given: str, *, region: str | None = None, api: Api | None = None) -> str:
    """The folder or `s3://bucket/prefix` that is meant: as given, or that of the job of this id.

    Raises:
        LaunchError: it is none of these, there is no such job, or its results are nowhere that is known.
        AwsError: AWS refuses, or does not answer.
    """
    match = _JOB_ID.fullmatch(given)
    if match is not None:
        return await results_of(match["id"], region=region, api=api)
    if "://" in given or os.path.isdir(given):  # noqa: ASYNC240  # one look at a name
        return given
    raise LaunchError(f"{given!r} is no id of a job, no folder that is there, and no s3://bucket/prefix")


async def results_of(job: str, *, region: str | None = None, api: Api | None = None) -> str:
    """Where a job of AWS Batch saves its results: what the variable in its environment says, else its tag `aiocluster:results`.

    Raises:
        LaunchError: there is no such job, or it has neither.
        AwsError: AWS refuses, or does not answer.
    """
    mine = Aws(region) if api is None else api
    try:
        told = await _described(mine, job)
        main = (told.get("nodeProperties") or {}).get("mainNode")
        ran = told if main is None else await _described(mine, f"{job}#{main}")
    finally:
        if api is None:
            await mine.close()
    if not told:
        raise LaunchError(f"AWS Batch has no job {job} here: is the region right? It forgets jobs a week after their end")
    variables = {one["name"]: one.get("value") for one in (ran.get("container") or {}).get("environment", ())}
    place = variables.get(VARIABLE) or (told.get("tags") or {}).get(TAG)
    if not place:
        raise LaunchError(
            f"job {job} does not say where its results are: it has no tag {TAG} and no variable {VARIABLE}, which "
            "`aiocluster job submit` sets. If you know the place, name it instead of the job: s3://bucket/prefix"
        )
    if "://" not in place:
        raise LaunchError(f"job {job} saved its results to the folder {place} in its own container, which is gone with it")
    return str(place)


async def _described(api: Api, id: str) -> Mapping[str, Any]:
    """The job; empty if there is none."""
    found: list[Mapping[str, Any]] = (await api.call("batch", "describe_jobs", jobs=[id]))["jobs"]
    return found[0] if found else {}
