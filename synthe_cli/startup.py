"""Start-up without garbage collection: modules and weights that are loaded live as long as the process."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Within the block nothing is collected; afterwards what was made in it is not looked at again.

    While torch is imported the collector runs a hundred times over objects that stay: a quarter of a second.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
