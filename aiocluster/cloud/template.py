"""The CloudFormation templates that come with aiocluster: in a checkout they are those of deploy/, else a part of the package."""

from __future__ import annotations

from pathlib import Path

from aiocluster.errors import LaunchError

__all__ = ["LARGEST", "TEMPLATES", "read_template", "template_path"]

TEMPLATES = ("batch", "ecs")
LARGEST = 51_200
"""Bytes in one request. Source: "AWS CloudFormation quotas"."""
PACKAGE = Path(__file__).parent


def template_path(name: str, *, package: Path = PACKAGE) -> Path:
    """Where the template of this name is.

    Raises:
        LaunchError: it is not there; says where it was looked for.
    """
    places = (package / "templates", package.parents[1] / "deploy")
    for place in places:
        path = place / f"{name}.yml"
        if path.is_file():
            return path
    looked = " and ".join(str(place) for place in places)
    raise LaunchError(f"this installation of aiocluster has no template {name}.yml (in {looked}): install it again")


def read_template(name: str) -> str:
    """The text of a template.

    Args:
        name: one of `TEMPLATES`, or the path of a template of your own.

    Raises:
        LaunchError: there is no such template, or it is larger than AWS takes.
    """
    path = template_path(name) if name in TEMPLATES else Path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LaunchError(
            f"the template {name} cannot be read: {error}; those of aiocluster are {', '.join(TEMPLATES)}"
        ) from error
    size = len(text.encode())
    if size > LARGEST:
        raise LaunchError(f"the template {path} has {size} bytes, and AWS takes {LARGEST} at most")
    return text
