"""Memory that a process has freed, and its allocator has not given back."""

from __future__ import annotations

import ctypes
import sys

_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def return_freed_memory() -> None:
    """Gives the allocator's free pages back to the system, which only glibc can: where large tensors come and go, small
    objects between them would hold gaps as large as the tensors."""
    if _malloc_trim is not None:
        _malloc_trim(0)
