"""Text is released once it is final: whole characters, and nothing of a stop string."""

from __future__ import annotations

from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.inference.detokenizer import Detokenizer


def test_stop_strings_are_removed():
    tokenizer = ByteTokenizer()
    row = Detokenizer(tokenizer.decoder(), ["END", "\n\n"])
    shown = "".join(row.push(b) for b in b"one EN two E")
    assert shown == "one EN two "
    assert "".join(row.push(b) for b in b"ND three"[:2]) == "" and row.stopped
    partial = Detokenizer(tokenizer.decoder(), ["END"])
    assert "".join(partial.push(b) for b in b"xEN") + partial.flush() == "xEN"


def test_multibyte_characters_are_complete():
    row = Detokenizer(ByteTokenizer().decoder(), [])
    assert [row.push(b) for b in "é€".encode()] == ["", "é", "", "", "€"]
