"""Which weights an adapter is an adapter of: recorded in its factors' file, and compared before a merge."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from synthe_core.adapters.peft import BASE_DIGEST
from synthe_core.errors import InputError
from synthe_core.merging.inputs.adapter import Adapter
from synthe_core.storage.checkpoint import Checkpoint


def digests_of(model: Path) -> Sequence[str]:
    """The digests that an adapter of the model may record; none where synthe does not know the architecture."""
    try:
        return Checkpoint.open(model).base_digests
    except InputError:
        return ()


def base_metadata(model: Path) -> dict[str, str]:
    """What the file of an adapter of the model records of it."""
    return dict(zip((BASE_DIGEST,), digests_of(model), strict=False))


def common_metadata(adapters: Iterable[Adapter]) -> dict[str, str]:
    """What the file of the merged adapter records. Nothing, and a warning, where they are of different weights."""
    recorded = {each.recorded_base: each for each in adapters if each.recorded_base is not None}
    if len(recorded) > 1:
        one, other, *_ = recorded.values()
        warnings.warn(f"{one.named} and {other.named} are adapters of different weights", stacklevel=2)
        return {}
    return dict(zip((BASE_DIGEST,), recorded, strict=False))


def compare_base(model: Path, named: str, adapters: Iterable[Adapter]) -> None:
    """A warning for an adapter that records that it was trained on other weights than those of the model.

    It is no error: a difference may be added to a relative of its base on purpose.
    """
    recorded = [each for each in adapters if each.recorded_base is not None]
    digests = digests_of(model) if recorded else ()
    for each in recorded:
        if digests and each.recorded_base not in digests:
            warnings.warn(f"{each.named} was trained on other weights than those of {named}", stacklevel=2)
