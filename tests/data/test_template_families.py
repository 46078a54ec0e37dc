"""Chat templates with the constructs of published families: 200 conversations each, rendered as transformers does."""

from __future__ import annotations

from typing import Any

import pytest

from synthe_core.data.chat_template import TemplateError, render
from synthe_core.data.tokenizers import ByteTokenizer
from tests.data.conversations import conversations
from tests.data.template_families import FAMILIES, OF_PARTS
from tests.data.templates import ALL

TEMPLATES = {**ALL, **FAMILIES}
NAMES = {"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "</s>"}


def parts(content: Any) -> Any:
    """What a template that knows no texts is given here."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_transformers_renders(name: str) -> None:
    jinja2 = pytest.importorskip("jinja2")
    transformers = pytest.importorskip("transformers")
    import tokenizers

    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()), **NAMES
    )
    ours = ByteTokenizer()
    theirs.chat_template = ours.chat_template = TEMPLATES[name]
    ours.special_tokens = NAMES
    rendered = 0
    for each in conversations(200, parts=name in OF_PARTS):
        messages, tools, answer = each["messages"], each["tools"], each["answer"]
        given = [each | {"content": parts(each["content"])} for each in messages] if name == "parts only" else messages
        try:
            expected = theirs.apply_chat_template(given, tools, add_generation_prompt=answer, tokenize=False)
        except (jinja2.TemplateError, TypeError) as error:
            with pytest.raises(TemplateError) as raised:
                render(ours, messages, answer=answer, variables={"tools": tools})
            assert not raised.value.refused or str(error) in raised.value.message
            continue
        assert render(ours, messages, answer=answer, variables={"tools": tools}) == expected
        rendered += 1
    assert rendered >= 40
