"""Tokenizers with the parts of published families: normalizers, cuts, added tokens, begin and end by a template."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.data.conversations import TEXTS

SPACE = "\u2581"
WORDS = [
    "the sea times is " * 3,
    "hello world I'll we're don't 12345",
    "日本語 hé",
    "  two  spaces\n\n lines\t",
    *TEXTS,
]
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def _trained(inner: tokenizers.Tokenizer, **options: object) -> tokenizers.Tokenizer:
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=SPECIAL, show_progress=False, **options)
    inner.train_from_iterator(WORDS * 3, trainer)
    return inner


def _byte_level(*cuts: str, prefix: bool = False, **options: object) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE(**options))
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=not cuts)
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [*(pre_tokenizers.Split(Regex(each), "isolated") for each in cuts), level]
    )
    inner.decoder = decoders.ByteLevel()
    return _trained(inner, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def qwen() -> tokenizers.Tokenizer:
    inner = _byte_level(r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+")
    inner.normalizer = normalizers.NFC()
    inner.add_tokens([AddedToken("<tool_response>", special=False, normalized=False), AddedToken("<think>")])
    return inner


def llama3() -> tokenizers.Tokenizer:
    inner = _byte_level(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+", ignore_merges=True)
    inner.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return inner


def deepseek() -> tokenizers.Tokenizer:
    inner = _byte_level(r"\p{N}{1,3}", r"[一-龥]+", r"\s?[A-Za-z]+|\s+")
    inner.add_special_tokens(["<\uff5cUser\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"])
    return inner


def roberta() -> tokenizers.Tokenizer:
    inner = _byte_level(prefix=True)
    inner.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    return inner


def phi3() -> tokenizers.Tokenizer:
    """Special tokens that take the white space after them, over pieces with a fallback to bytes."""
    inner = _pieces([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)], strip=True)
    inner.add_special_tokens(
        [AddedToken(f"<|{name}|>", rstrip=True) for name in ("user", "assistant", "end", "system")]
    )
    return inner


def llama2() -> tokenizers.Tokenizer:
    inner = _pieces([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)], strip=True)
    inner.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return inner


def gemma() -> tokenizers.Tokenizer:
    inner = _pieces([normalizers.Replace(" ", SPACE)])
    inner.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    inner.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("<start_of_turn>", special=True)])
    return inner


def _pieces(steps: list[normalizers.Normalizer], strip: bool = False) -> tokenizers.Tokenizer:
    """BPE over pieces whose spaces are a letter of their own, with a fallback to bytes."""
    inner = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    inner.normalizer = normalizers.Sequence(steps)
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*parts, *([decoders.Strip(" ", 1, 0)] if strip else [])])
    names = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=names, show_progress=False, limit_alphabet=60)
    inner.train_from_iterator(["times is the sea the sea hello world"] * 5, trainer)
    values = inner.to_str()
    made = tokenizers.Tokenizer.from_str(values)
    return _without_specials(made, SPECIAL)


def _without_specials(inner: tokenizers.Tokenizer, names: list[str]) -> tokenizers.Tokenizer:
    """The same, in which only `names` are added tokens: bytes of the fallback are tokens of the vocabulary."""
    import json

    values = json.loads(inner.to_str())
    values["added_tokens"] = [each for each in values["added_tokens"] if each["content"] in names]
    return tokenizers.Tokenizer.from_str(json.dumps(values))


def metaspace(scheme: str) -> Callable[[], tokenizers.Tokenizer]:
    def made() -> tokenizers.Tokenizer:
        inner = _pieces([])
        inner.normalizer = normalizers.Sequence([])
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        inner.decoder = decoders.Sequence([*parts, *([decoders.Strip(" ", 1, 0)] if scheme != "never" else [])])
        return inner

    return made


def unigram() -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.Unigram())
    inner.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    inner.train_from_iterator(WORDS * 3, trainer)
    inner.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 2)])
    return inner


def wordpiece() -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    inner.normalizer, inner.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=SPECIAL, show_progress=False)
    inner.train_from_iterator(WORDS * 3, trainer)
    return inner


FAMILIES: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "gpt2": _byte_level, "smollm": lambda: _byte_level(r"\p{N}", r"'s| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+"),
    "qwen": qwen, "llama3": llama3, "deepseek": deepseek, "roberta": roberta, "llama2": llama2, "phi3": phi3,
    "gemma": gemma, "metaspace always": metaspace("always"), "metaspace first": metaspace("first"),
    "metaspace never": metaspace("never"), "unigram": unigram, "wordpiece": wordpiece,
}  # fmt: skip


def save(name: str, folder: Path) -> Path:
    """Writes the tokenizer of a family into `folder` as transformers saves it."""
    import transformers

    options = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "clean_up_tokenization_spaces": False}
    transformers.PreTrainedTokenizerFast(tokenizer_object=FAMILIES[name](), **options).save_pretrained(folder)
    return folder
