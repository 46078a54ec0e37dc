"""Secrets are replaced, and nothing else."""

from __future__ import annotations

import pytest

from synthe_core.swarm.redaction import EMAIL, SECRET, redact


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("write to ada.b+c@mail.example.org, please", f"write to {EMAIL}, please"),
        ("key sk-proj-abcDEF0123456789abcdef.", f"key {SECRET}."),
        ("ghp_0123456789abcdefghijABCDEFGHIJ012345", SECRET),
        ("hf_abcdefghijklmnopqrstuvwxyz", SECRET),
        ("id AKIAIOSFODNN7EXAMPLE!", f"id {SECRET}!"),
        ("eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJ", SECRET),
        ("Authorization: Bearer abcdef0123456789", f"Authorization: Bearer {SECRET}"),
        ("my password is swordfish", f"my password is {SECRET}"),
        ("password: 'open sesame'", f"password: {SECRET}"),
        ("API_KEY=abc123def456", f"API_KEY={SECRET}"),
        ("postgres://ada:pa55@db.example.org/x", f"postgres://ada:{SECRET}@db.example.org/x"),
        ("card 4111 1111 1111 1111.", f"card {SECRET}."),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nbye", f"{SECRET}\nbye"),
        ("-----BEGIN PRIVATE KEY-----\nMIIE", SECRET),
    ],
)
def test_secrets_are_replaced(text: str, redacted: str) -> None:
    assert redact(text) == redacted
    assert redact(redacted) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "The password is stored in a file.",
        "def f(token: str, password: str = None): ...",
        "token = tokenizer.next()",
        "the token is printed",
        "1234 5678 9012 3456 is no card",
        "0000 0000 0000 0000",
        "See example.org and @ada at 10.30",
        "x = 12345678901234567890123",
        "https://example.org:8080/a@b",
    ],
)
def test_other_texts_stay(text: str) -> None:
    assert redact(text) == text
