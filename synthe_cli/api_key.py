"""Files of API keys: one key per line for a server, with its role; a client sends the first."""

from __future__ import annotations

import codecs
from pathlib import Path

from synthe_core.errors import InputError, unknown

WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as PowerShell writes files


ROLES = ("user", "reviewer", "admin")
"""Each may do what those before it may."""


def keys_in(path: Path, option: str = "--api-key-file") -> tuple[str, ...]:
    """The distinct keys of the file that `option` names. Lines that start with # are comments."""
    return tuple(roles_in(path, option))


def roles_in(path: Path, option: str = "--api-key-file") -> dict[str, str]:
    """The role of each key of the file: the word after it, or `user`. InputError for a word that is no role, and for a
    key with two."""
    try:
        content = path.expanduser().read_bytes()
        lines = content.decode("utf-16" if content.startswith(WIDE) else "utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{option} {path}: {getattr(error, 'strerror', None) or 'is not text'}") from None
    keys: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key, *words = line.split()
        role = words[0] if words else ROLES[0]
        if len(words) > 1:
            raise InputError(f"{option} {path}:{number} has more than a key and a role", "one key a line: KEY ROLE")
        if role not in ROLES:
            fault = unknown("role", role, ROLES)
            raise InputError(f"{option} {path}:{number}: {fault.message}", fault.hint)
        if keys.setdefault(key, role) != role:
            raise InputError(f"{option} {path}:{number}: the key has another role above", "give it one")
    if not keys:
        raise InputError(f"{option} {path} has no key", f"one per line: openssl rand -hex 32 > {path}")
    return keys
