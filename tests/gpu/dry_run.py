"""Whether a check of the device is gone through without one: import this before torch."""

from __future__ import annotations

import sys

DRY = "--dry-run" in sys.argv
if DRY:
    from tests.gpu.simulated import machine  # noqa: F401
