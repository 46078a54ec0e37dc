"""Writing a tokenizer in transformers' format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from synthe_core.data.tokenizers import CHAT, MARKS, FileTokenizer, Tokenizer


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Writes tokenizer.json and tokenizer_config.json, which give the same ids for the same text.

    One difference: transformers parses the name of a special token in a text as that token, synthe as text.
    """
    inner = _inner(tokenizer)
    end = tokenizer.spelling(tokenizer.end)
    options: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end}
    options["clean_up_tokenization_spaces"] = False
    if tokenizer.begin is not None:
        begin = tokenizer.spelling(tokenizer.begin)
        options["bos_token"] = begin
        if inner.encode("a").ids[:1] != [tokenizer.begin]:
            inner.post_processor = processors.TemplateProcessing(
                f"{begin} $A", special_tokens=[(begin, tokenizer.begin)]
            )
    inner.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(options, indent=1) + "\n", encoding="utf-8")
    if tokenizer.chat_template is not None:
        (folder / CHAT).write_text(tokenizer.chat_template, encoding="utf-8")


def _inner(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    if isinstance(tokenizer, FileTokenizer):
        content = json.loads(tokenizer.to_json())
        content.pop(MARKS, None)
        return tokenizers.Tokenizer.from_str(json.dumps(content))
    spellings = {tokenizer.spelling(byte): byte for byte in range(tokenizer.end)}
    inner = tokenizers.Tokenizer(models.BPE(vocab=spellings, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([tokenizer.spelling(tokenizer.end)])
    return inner
