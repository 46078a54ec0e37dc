"""Secrets and e-mail addresses are replaced before a text is stored."""

from __future__ import annotations

import re

EMAIL = "[e-mail address]"
SECRET = "[secret]"

_ADDRESS = re.compile(r"(?<![\w.+-])[\w.+'-]{1,64}@(?:[\w-]{1,63}\.)+[^\W\d_]{2,24}\b")
_SECRETS = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
        r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*",  # JSON web tokens
        r"\b(?:sk|pk|rk)[-_][\w-]{16,}",  # OpenAI, Anthropic, Stripe
        r"\b(?:ghp|gho|ghu|ghs|ghr)_\w{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}",
        r"\bhf_[A-Za-z0-9]{20,}|\bAIza[\w-]{30,}|\bxox[abprs]-[\w-]{10,}|\bnpm_\w{30,}|\bpypi-[\w-]{30,}",
        r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    )
)
_NAMED = re.compile(
    r"(?i)(\bmy\s+)?\b(pass(?:word|wd|phrase|code)|pwd|pin|secret(?:[ _-]?(?:access[ _-]?)?key)?|api[ _-]?key"
    r"|access[ _-]?key|private[ _-]?key|(?:access|auth|bearer|refresh)[ _-]?token|token)"
    r"\b([\"']?(?:\s+is\s+|\s*[:=]\s*))(\"[^\"\n]{3,}\"|'[^'\n]{3,}'|[^\s,;\"']{3,})"
)
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/-]{12,}=*")
_LOGIN = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://[^\s/:@]+):[^\s/@]+@")  # the password within a URL
_CARD = re.compile(r"(?<![\d-])(?:\d[ -]?){12,18}\d(?![\d-])")


def redact(text: str) -> str:
    """`text` with e-mail addresses, keys, tokens, passwords and card numbers replaced by what they were.

    Redacting twice changes nothing more.
    """
    for pattern in _SECRETS:
        text = pattern.sub(SECRET, text)
    text = _LOGIN.sub(rf"\1:{SECRET}@", text)
    text = _BEARER.sub(rf"\1 {SECRET}", text)
    text = _NAMED.sub(_named, text)
    text = _CARD.sub(lambda match: SECRET if _is_card(match[0]) else match[0], text)
    return _ADDRESS.sub(EMAIL, text)


def _named(match: re.Match[str]) -> str:
    owner, name, verb, value = match[1] or "", match[2], match[3], match[4]
    bare = value.strip("\"'.!?")
    is_secret = bool(re.search(r"\d", bare)) and len(bare) >= 4 and not re.search(r"[()\[\]{}]", bare)
    is_password = name.lower().startswith(("pass", "pwd")) and ("my" in owner.lower() or value[0] in "\"'")
    if not (is_secret or is_password) or bare in (SECRET, EMAIL):
        return match[0]  # such as `token: str`, or "the password is stored"
    return f"{owner}{name}{verb}{SECRET}"


def _is_card(number: str) -> bool:
    """Luhn's check (ISO/IEC 7812-1): one in ten numbers passes it by chance."""
    digits = [int(character) for character in number if character.isdigit()][::-1]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return len(set(digits)) > 1 and (sum(digits[::2]) + sum(doubled)) % 10 == 0
