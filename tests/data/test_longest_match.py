"""The longest token at every byte: against the tokenizers library, a plain loop and RWKV's own vocabulary."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import tokenizers

from synthe_core.data.longest_match import LongestMatchTokenizer, escaped, unescaped
from synthe_core.data.tokenizers import load_tokenizer, read_tokenizer
from synthe_core.errors import InputError
from tests.paths import SHARED

WORLD = SHARED / "data" / "tokenizers" / "rwkv-world" / "rwkv_vocab_v20230424.txt"
WORDS = [
    "",
    "the sea, the old man",
    " leading  and   trailing \n\n",
    "na\u00efve caf\u00e9 12345 \u65e5\u672c\u8a9e \U0001f600\U0001f44d\U0001f3fd \u043f\u0440\u0438\u0432\u0435\u0442",
    "def f(x):\r\n\treturn x ** 2  # \\x41 'quoted' \"twice\"",
]


def small() -> LongestMatchTokenizer:
    """Every byte, and tokens that overlap, that end within a character, and that differ in their last byte."""
    more = [b"the", b"the ", b" the old", b"  ", b"\n\n", b"na\xc3", b"\xaf", b"\xe6\x97", b"12", b"123", b"1234x"]
    vocabulary = {i + 1: bytes([i]) for i in range(256)} | {
        257 + i: token for i, token in enumerate(token for token in more if len(token) > 1)
    }
    return LongestMatchTokenizer(vocabulary, {0: "<|endoftext|>"}, "small", 0)


def plainly(tokenizer: LongestMatchTokenizer, text: str) -> list[int]:
    data, ids = text.encode(), {piece: i for i, piece in enumerate(tokenizer.pieces) if piece}
    tokens, at = [], 0
    while at < len(data):
        length = next(n for n in range(len(data) - at, 0, -1) if data[at : at + n] in ids)
        tokens.append(ids[data[at : at + length]])
        at += length
    return tokens


@pytest.mark.parametrize("text", WORDS)
def test_tokens_are_the_longest_ones_and_the_library_agrees(tmp_path: Path, text: str) -> None:
    tokenizer = small()
    tokens = tokenizer.encode(text)
    assert tokens == plainly(tokenizer, text)
    assert tokenizer.decode(tokens) == text and tokenizer.bytes_of(tokens) == text.encode()
    library = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    assert library.encode(text).ids == tokens and library.decode(tokens) == text
    assert [each.tolist() for each in tokenizer.encode_batch([text, text.encode()])] == [tokens, tokens]
    again = load_tokenizer(tokenizer.save(tmp_path))
    assert isinstance(again, LongestMatchTokenizer)
    assert again.encode(text) == tokens and again.digest == tokenizer.digest and again.end == tokenizer.end


def test_bytes_that_are_no_text_have_tokens() -> None:
    assert small().bytes_of(small().encode(b"\xff\xfe the")) == b"\xff\xfe the"


def test_special_tokens_are_text_unless_they_are_marked() -> None:
    tokenizer, text = small(), "the <|endoftext|>the"
    assert tokenizer.end not in tokenizer.encode(text)
    marked = tokenizer.encode_marked(text)
    assert marked.count(tokenizer.end) == 1 and tokenizer.decode_marked(marked) == text
    assert tokenizer.decode(marked) == "the the" and tokenizer.special_ids == {0}


def test_tokens_that_come_one_by_one_make_whole_characters() -> None:
    tokenizer = small()
    for text in WORDS:
        decoder = tokenizer.decoder()
        parts = [decoder.push([token]) for token in tokenizer.encode(text)]
        assert "".join(parts) + decoder.flush() == text
        assert not any("\ufffd" in part for part in parts)


def test_places_are_those_of_characters() -> None:
    tokenizer, text = small(), "na\u00efve<|endoftext|> the old \u65e5"
    tokens, places = tokenizer.encode_with_places(text)
    assert tokens == tokenizer.encode_marked(text)
    assert [text[a:b] for a, b in places if text[a:b].isascii()][-1] != "" and places[-1][1] == len(text)
    assert all(a < b for a, b in places) and places == sorted(places)
    for token, (a, b) in zip(tokens, places, strict=True):
        assert tokenizer.pieces[token] in text[a:b].encode() or text[a:b] == "<|endoftext|>"


@pytest.mark.parametrize(
    "change",
    [
        ('"unk_token": "<|endoftext|>"', '"unk_token": "the"'),
        ('"vocab": {', '"vocab": {"\\u0416": 999, '),
        ('"vocab": {', '"vocab": {"zzz": -1, '),
        ('"vocab": {', '"vocab": {"zzz": "1", '),
        ('"!": 34,', ""),
    ],
)
def test_a_file_that_is_none_is_one_line(change: tuple[str, str]) -> None:
    content = small().to_json()
    assert change[0] in content
    with pytest.raises(InputError) as caught:
        read_tokenizer(content.replace(*change).encode(), "odd")
    assert "\n" not in caught.value.message


def test_escapes_of_gguf_files() -> None:
    for token in (b"a", b"\n", b"\t\r", b"\\", b"'", b'"', b"'\"", b"\x00\xff", "\u65e5".encode(), b"\\n", b"\\x41"):
        assert unescaped(escaped(token)) == token
    for text in ("\\", "\\x1", "\\xzz", "a\\"):
        with pytest.raises(ValueError, match="half an escape"):
            unescaped(text)


def world_vocabulary() -> dict[int, bytes]:
    vocabulary: dict[int, bytes] = {}
    for line in WORLD.read_text(encoding="utf-8").splitlines():
        index, _, rest = line.partition(" ")
        literal, _, size = rest.rpartition(" ")
        token = ast.literal_eval(literal)
        vocabulary[int(index)] = token.encode() if isinstance(token, str) else token
        assert len(vocabulary[int(index)]) == int(size)
    return vocabulary


@pytest.mark.skipif(not WORLD.is_file(), reason="needs the shared tokenizers")
def test_rwkvs_vocabulary(tmp_path: Path) -> None:
    vocabulary = world_vocabulary()
    world = LongestMatchTokenizer(vocabulary, {0: "<|rwkv_tokenizer_end_of_text|>"}, "world", 0)
    library = tokenizers.Tokenizer.from_str(world.to_json())
    for text in WORDS:
        tokens = world.encode(text)
        assert tokens == plainly(world, text) == library.encode(text).ids
        assert world.decode(tokens) == text
    assert all(unescaped(escaped(token)) == token for token in vocabulary.values())
    again = load_tokenizer(world.save(tmp_path))
    assert again.digest == world.digest and again.encode(WORDS[3]) == world.encode(WORDS[3])
