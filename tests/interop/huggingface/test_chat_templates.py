"""Prompts of published models are those of transformers, token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from synthe_core.data.chat_template import render
from synthe_core.data.tokenizers import open_tokenizer
from tests.data.templates import LOOP_CONTROLS, MISTRAL
from tests.interop.huggingface.models import add_tokenizer, transformer
from tests.paths import SHARED

CASES = SHARED / "cases" / "18"
SMOLLM = SHARED / "models" / "smollm2-135m-instruct" / "SmolLM2-135M-Instruct.Q4_1.gguf"
CHAT = [
    {"role": "user", "content": "hé"},
    {"role": "assistant", "content": " yo"},
    {"role": "user", "content": "x\n"},
]


def check(folder: Path) -> Any:
    """Our tokenizer of a model folder, whose prompts are compared with those of transformers."""
    transformers = pytest.importorskip("transformers")
    ours, theirs = open_tokenizer(str(folder)), transformers.AutoTokenizer.from_pretrained(folder)
    for messages in (CHAT, CHAT[:1], [{"role": "system", "content": "S"}, *CHAT]):
        for answer in (True, False):
            text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
            assert render(ours, messages, answer=answer) == text
            assert ours.encode_marked(text) == theirs.encode(text, add_special_tokens=False)
    return ours


@pytest.mark.parametrize("name", ["hf_bos", "hf_eos", "hf_generation", "hf_loopctl", "hf_toolsnone"])
def test_reported_folders(name: str) -> None:
    if not CASES.is_dir():
        pytest.skip("no shared data here")
    tokenizer = check(CASES / name)
    assert tokenizer.ends == ({259, 260} if name == "hf_eos" else {259})
    assert tokenizer.begin is None


@pytest.mark.parametrize("template", [MISTRAL, LOOP_CONTROLS])
def test_a_folder_with_an_end_that_only_its_template_writes(tmp_path: Path, template: str) -> None:
    folder = tmp_path / "model"
    add_tokenizer(folder)
    transformer(folder, layers=1, vocab_size=280, eos_token_id=1, bos_token_id=0)
    (folder / "generation_config.json").unlink()
    options = '{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<|turn|>"}'
    (folder / "tokenizer_config.json").write_text(options)
    (folder / "chat_template.jinja").write_text(template.replace("eos_token", "'<|turn|>'"))
    tokenizer = check(folder)
    assert tokenizer.end == 1 and tokenizer.ends == {1, 2}


def test_a_real_model() -> None:
    if not SMOLLM.is_file():
        pytest.skip("no shared data here")
    tokenizer = open_tokenizer(str(SMOLLM))
    text = "<|im_start|>user\nhé<|im_end|>\n<|im_start|>assistant\n yo<|im_end|>\n<|im_start|>user\nx\n<|im_end|>\n"
    system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    assert render(tokenizer, CHAT) == system + text + "<|im_start|>assistant\n"
    assert {tokenizer.spelling(end) for end in tokenizer.ends} >= {"<|im_end|>"}
    assert tokenizer.decode_marked(tokenizer.encode_marked(system + text)) == system + text
