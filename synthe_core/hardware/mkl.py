"""MKL's mode of products that round alike for any number of rows."""

from __future__ import annotations

import os

MODE = "MKL_CBWR"
STRICT = "AUTO,STRICT"


def request_strict_mode() -> None:
    """Asks MKL for its strict mode, which it has on Intel's processors; a mode that the user has set stays.

    MKL reads the environment at its first product in the process, so this must come before it.
    """
    os.environ.setdefault(MODE, STRICT)
