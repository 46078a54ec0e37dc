"""Whether the hub is reachable, checked once instead of by every library's own retries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from synthe_core.storage.hub.access import offline

TIMEOUT = 5.0  # seconds to wait for the hub's answer


@contextmanager
def offline_if_unreachable() -> Iterator[bool]:
    """Yields whether the hub answers. If not, libraries use only files on disk within the block."""
    import datasets
    import huggingface_hub.constants
    import requests

    offline_requested = offline()
    try:
        if not offline_requested:
            requests.head(huggingface_hub.constants.ENDPOINT, timeout=TIMEOUT)
        reachable = not offline_requested
    except requests.RequestException:
        reachable = False
    switches = (
        (huggingface_hub.constants, "HF_HUB_OFFLINE"),
        (datasets.config, "HF_HUB_OFFLINE"),
        (datasets.config, "HF_DATASETS_OFFLINE"),
    )
    before = [(module, name, getattr(module, name)) for module, name in switches if hasattr(module, name)]
    datasets.disable_progress_bars()
    try:
        if not reachable:
            for module, name, _ in before:
                setattr(module, name, True)
        yield reachable
    finally:
        for module, name, value in before:
            setattr(module, name, value)
