"""Whether the hub may be reached, and its errors in one line."""

from __future__ import annotations

import os

from synthe_core.errors import InputError, SyntheError, WorkError

TIMEOUT = 10.0  # seconds to wait for the hub's first answer


def offline() -> bool:
    """Whether the hub's environment variables forbid the network."""
    flags = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))
    return any(flag.upper() in {"1", "ON", "YES", "TRUE"} for flag in flags)


def explain(what: str, error: Exception) -> SyntheError:
    """One line for an error of the hub's libraries while reaching `what`."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, LocalEntryNotFoundError):
        return unreachable(what, error)
    if isinstance(error, GatedRepoError):
        return InputError(f"{what} is gated", "ask for access on its page on the hub, then run: hf auth login")
    if isinstance(error, HFValidationError):
        return InputError(f"{what}: this is no name of the hub", "a name is ORG/NAME")
    if isinstance(error, RevisionNotFoundError):
        return InputError(f"{what} has no such revision", "a revision is a branch, a tag or a commit")
    if isinstance(error, RepositoryNotFoundError | EntryNotFoundError):
        return InputError(f"{what} is not on the hub, or is private", "check the name; if private: hf auth login")
    if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
        return InputError(f"the hub refuses {what}", "log in with a token that may read it: hf auth login")
    return unreachable(what, error)


def unreachable(what: str, error: Exception | None = None) -> WorkError:
    """The error for a hub that does not answer, or with the network forbidden."""
    if offline():
        return WorkError(
            f"{what} cannot be read: offline mode is on (HF_HUB_OFFLINE or HF_DATASETS_OFFLINE) and no copy is here",
            "unset the variable, or name a local file",
        )
    cause = " ".join(str(error).split())[:200] or type(error).__name__
    return WorkError(f"{what} cannot be reached: {cause}", "check the network, or name a local file")
