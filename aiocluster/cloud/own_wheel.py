"""The aiocluster that runs here, as a wheel: what images for scripts are given, so that both ends are the same."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from aiocluster.cloud.template import TEMPLATES, template_path
from aiocluster.errors import LaunchError

__all__ = ["Wheel", "own_wheel"]

PACKAGE = Path(__file__).parents[1]
NAME = PACKAGE.name
MADE_BY_INSTALLERS = frozenset({"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"})
MIDNIGHT = (1980, 1, 1, 0, 0, 0)
"""The time of all files, the earliest that an archive can tell."""


class Wheel(NamedTuple):
    """A wheel as pip takes it."""

    name: str
    content: bytes


def own_wheel(name: str = NAME) -> Wheel:
    """A wheel with the code that runs here, also of an editable installation. The same code gives the same bytes.

    Args:
        name: of the distribution that says what it requires.

    Raises:
        LaunchError: aiocluster runs here without being installed, so that nobody knows what it requires.

    Source: "Binary distribution format", https://packaging.python.org/en/latest/specifications/binary-distribution-format/
    """
    try:
        installed = metadata.distribution(name)
    except metadata.PackageNotFoundError as error:
        raise LaunchError(f"{PACKAGE} is not installed, so that it cannot be put into an image: install it with pip") from error
    record = f"{NAME}-{installed.version}.dist-info/RECORD"
    content = io.BytesIO()
    lines = []
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, data in sorted((*_code(), *_about(installed))):
            wheel.writestr(_member(path), data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            lines.append(f"{path},sha256={digest},{len(data)}\n")
        wheel.writestr(_member(record), "".join([*lines, f"{record},,\n"]))
    return Wheel(f"{NAME}-{installed.version}-py3-none-any.whl", content.getvalue())


def _code() -> Iterator[tuple[str, bytes]]:
    """The files of the package; the templates, which a checkout keeps elsewhere, are where an installation has them."""
    files = {path.relative_to(PACKAGE.parent).as_posix(): path for path in PACKAGE.rglob("*") if path.is_file()}
    files |= {f"{NAME}/cloud/templates/{template}.yml": template_path(template) for template in TEMPLATES}
    return ((name, path.read_bytes()) for name, path in files.items() if "__pycache__" not in name)


def _about(installed: metadata.Distribution) -> Iterator[tuple[str, bytes]]:
    """Name, requirements, commands and licence, without what is true of this machine alone."""
    for file in installed.files or ():
        if file.parts[0].endswith(".dist-info") and file.name not in MADE_BY_INSTALLERS:
            yield file.as_posix(), Path(str(installed.locate_file(file))).read_bytes()


def _member(path: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(path, MIDNIGHT)
    member.compress_type = zipfile.ZIP_DEFLATED
    member.external_attr = 0o644 << 16
    return member
