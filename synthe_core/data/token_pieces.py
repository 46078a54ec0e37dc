"""The bytes that each token of a tokenizer.json stands for."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import tokenizers

from synthe_core.data.byte_level import byte_alphabet


def token_pieces(vocab: Mapping[str, int], added: Mapping[int, tokenizers.AddedToken], description: str) -> list[bytes]:
    """The bytes of every id: exact for byte-level vocabularies and byte fallback, by spelling for the others.

    added: the tokens by id that are added to the model's. description: the content of tokenizer.json.
    """
    content = json.loads(description)
    parts = json.dumps([content.get("pre_tokenizer"), content.get("decoder")])
    byte_level = '"ByteLevel"' in parts
    alphabet = byte_alphabet()
    pieces = [b""] * (max(vocab.values()) + 1)
    for token, i in vocab.items():
        if i in added:
            pieces[i] = b"" if added[i].special else token.encode("utf-8", "replace")
        elif byte_level:
            pieces[i] = bytes(alphabet[c] for c in token if c in alphabet)
        elif fallback := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token):
            pieces[i] = bytes([int(fallback[1], 16)])
        elif '"WordPiece"' in parts:
            pieces[i] = (token[2:] if token.startswith("##") else " " + token).encode("utf-8", "replace")
        else:
            pieces[i] = token.replace("\u2581", " ").encode("utf-8", "replace")
    return pieces
