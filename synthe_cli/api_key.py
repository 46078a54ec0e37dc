"""Files of API keys: one key per line for a server; a client sends the first."""

from __future__ import annotations

import codecs
from pathlib import Path

from synthe_core.errors import InputError

WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as PowerShell writes files


def keys_in(path: Path, option: str = "--api-key-file") -> tuple[str, ...]:
    """The distinct keys of the file that `option` names. Lines that start with # are comments."""
    try:
        content = path.expanduser().read_bytes()
        lines = content.decode("utf-16" if content.startswith(WIDE) else "utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{option} {path}: {getattr(error, 'strerror', None) or 'is not text'}") from None
    keys = tuple(dict.fromkeys(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")))
    if not keys:
        raise InputError(f"{option} {path} has no key", f"one per line: openssl rand -hex 32 > {path}")
    return keys
