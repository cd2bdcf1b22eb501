"""No test here may depend on how fast the machine is: hypothesis measures its examples by default."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("untimed", deadline=None, print_blob=True)
settings.load_profile("untimed")
