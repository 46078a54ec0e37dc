"""Files of API keys: one key per line for a server; a client sends the first."""

from __future__ import annotations

from pathlib import Path

from synthe_core.errors import InputError


def keys_in(path: Path) -> tuple[str, ...]:
    """The distinct keys of a file. Lines that start with # are comments."""
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--api-key-file {path}: {getattr(error, 'strerror', None) or 'is not text'}") from None
    keys = tuple(dict.fromkeys(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")))
    if not keys:
        raise InputError(f"--api-key-file {path} has no key", f"one per line: openssl rand -hex 32 > {path}")
    return keys
