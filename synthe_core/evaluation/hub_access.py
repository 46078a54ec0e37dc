"""Whether data sets may be fetched, found out once instead of by every library's own retries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from synthe_core.data.hub import offline

TIMEOUT = 5.0  # seconds to wait for the hub's answer


@contextmanager
def settled() -> Iterator[bool]:
    """Within the block the libraries use what is on disk alone where the hub does not answer; gives whether it does."""
    import datasets
    import huggingface_hub.constants
    import requests

    asked_for = offline()
    try:
        if not asked_for:
            requests.head(huggingface_hub.constants.ENDPOINT, timeout=TIMEOUT)
        reached = not asked_for
    except requests.RequestException:
        reached = False
    places = (
        (huggingface_hub.constants, "HF_HUB_OFFLINE"),
        (datasets.config, "HF_HUB_OFFLINE"),
        (datasets.config, "HF_DATASETS_OFFLINE"),
    )
    before = [(place, name, getattr(place, name)) for place, name in places if hasattr(place, name)]
    datasets.disable_progress_bars()
    try:
        if not reached:
            for place, name, _ in before:
                setattr(place, name, True)
        yield reached
    finally:
        for place, name, value in before:
            setattr(place, name, value)
