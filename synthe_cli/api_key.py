"""Files of API keys: a server's, one key a line, and a client's, of which the first is sent."""

from __future__ import annotations

from pathlib import Path

from synthe_core.errors import InputError


def keys_in(path: Path) -> tuple[str, ...]:
    """The keys of a file, each once; lines that begin with # are none."""
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--api-key-file {path}: {getattr(error, 'strerror', None) or 'is no text'}") from None
    keys = tuple(dict.fromkeys(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")))
    if not keys:
        raise InputError(f"--api-key-file {path} holds no key", f"one a line: openssl rand -hex 32 > {path}")
    return keys
