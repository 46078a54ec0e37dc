"""What of a conversation is trained on: as transformers marks it, and what remains of answers after the template."""

from __future__ import annotations

import random

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from synthe_core.data.conversations.training_text import TrainingText, training_text, training_tokens
from synthe_core.data.tokenizers import FileTokenizer
from synthe_core.errors import InputError
from tests.data.conversations import TEXTS
from tests.data.template_families import THINKING

GENERATION = """\
{%- for message in messages %}
    {%- if message.role == "assistant" %}
{{- '<|im_start|>assistant\\n' }}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}{{ '\\n' }}
    {%- else %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
CHATML = GENERATION.replace("{% generation %}", "").replace("{% endgeneration %}", "")
INST = """\
{{ bos_token }}{% for message in messages %}{% if message.role == "user" %}[INST] {{ message.content }} [/INST]\
{% else %} {{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"""
PLAIN = """\
{% for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "It is 4."},
    {"role": "user", "content": "And 日本?"},
    {"role": "assistant", "content": " 🙂 Nihon\n"},
]


def tokenizer(template: str, end: str = "<|im_end|>") -> FileTokenizer:
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    names = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=names, show_progress=False)
    inner.train_from_iterator(["What is 2 + 2? It is 4. assistant user system Be brief."] * 9, trainer)
    made = FileTokenizer(inner, "made", begin="<s>", end=end)
    made.chat_template = template
    return made


def trained_text(made: FileTokenizer, given: TrainingText) -> list[str]:
    """The runs of tokens that are trained on."""
    ids, trained = training_tokens(made, given)
    runs: list[list[int]] = []
    for index, token in enumerate(ids):
        if trained[index]:
            if not index or not trained[index - 1]:
                runs.append([])
            runs[-1].append(token)
    return [made.decode_marked(run) for run in runs]


@pytest.mark.parametrize("template", [GENERATION, CHATML])
def test_answers_are_trained_on_with_their_end_and_without_what_follows(template: str) -> None:
    made = tokenizer(template)
    given = training_text(made, CHAT)
    assert trained_text(made, given) == ["It is 4.<|im_end|>", " 🙂 Nihon\n<|im_end|>"]
    assert given.text.endswith("<|im_end|>\n") and not given.ends
    assert trained_text(made, training_text(made, CHAT, trained="last")) == [" 🙂 Nihon\n<|im_end|>"]
    assert trained_text(made, training_text(made, CHAT, trained="all")) == [given.text]


def test_the_prefix_is_what_the_model_answers_to() -> None:
    made = tokenizer(CHATML)
    ids, trained = training_tokens(made, training_text(made, CHAT[:3]))
    first = trained.index(True)
    from synthe_core.data.chat_template import render

    assert ids[:first] == made.encode_marked(render(made, CHAT[:2], answer=True))
    assert ids.count(made.end) == 3 and trained[len(ids) - 1 - ids[::-1].index(made.end)]


def test_a_begin_token_of_the_template_is_there_once() -> None:
    made = tokenizer(INST, "</s>")
    given = training_text(made, CHAT[1:])
    ids, _ = training_tokens(made, given)
    assert ids.count(made.begin) == 1
    assert trained_text(made, given) == [" It is 4.</s>", "  🙂 Nihon\n</s>"]


def test_an_end_token_follows_where_the_template_writes_none() -> None:
    made = tokenizer(PLAIN)
    given = training_text(made, CHAT[1:3])
    assert given.text == "user: What is 2 + 2?\nassistant: It is 4." and given.ends
    assert trained_text(made, given) == ["It is 4.<|im_end|>"]
    closed = training_text(made, CHAT[1:3], trained="all")
    assert closed.ends and trained_text(made, closed) == [given.text + "<|im_end|>"]
    turns = training_text(made, CHAT[1:])
    assert trained_text(made, turns) == ["It is 4.", " 🙂 Nihon<|im_end|>"]
    open_turn = training_text(made, [*CHAT[1:3], CHAT[3]])
    assert not open_turn.ends and trained_text(made, open_turn) == ["It is 4."]


def test_a_template_that_rewrites_earlier_answers_takes_the_last_only() -> None:
    made = tokenizer(THINKING)
    chat = [dict(each) for each in CHAT[1:]]
    chat[1]["reasoning_content"] = "Two and two."
    with pytest.raises(InputError, match=r"writes message 2 otherwise if more messages follow"):
        training_text(made, chat)
    (last,) = trained_text(made, training_text(made, chat, trained="last"))
    assert "Nihon" in last and last.endswith("<|im_end|>")


def test_an_answer_that_the_template_does_not_write_is_refused() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "now", "arguments": {}}}]}
    with pytest.raises(InputError, match=r"no place for message 2: it writes nothing of its tool calls"):
        training_text(tokenizer(CHATML + "{# tools, tool_calls #}"), [CHAT[1], call, *CHAT[3:]])


def test_calls_are_trained_on_though_the_template_knows_no_tools() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "now", "arguments": "{}"}}]}
    made = tokenizer(CHATML)
    messages = [CHAT[1], call, {"role": "tool", "content": "12:00"}, {"role": "assistant", "content": "Noon."}]
    given = training_text(made, messages, [{"name": "now", "parameters": {}}])
    written, answer = trained_text(made, given)
    assert written == '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call><|im_end|>'
    assert answer == "Noon.<|im_end|>"
    assert "<tools>" in given.text and "<|im_start|>user\n<tool_response>\n12:00\n</tool_response>" in given.text


@pytest.mark.parametrize("seed", range(3))
def test_masks_are_those_of_transformers(seed: int) -> None:
    transformers = pytest.importorskip("transformers")
    made = tokenizer(GENERATION)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer.from_str(made.to_json()))
    draw = random.Random(seed)
    for _ in range(60):
        chat = [
            {"role": role, "content": "".join(draw.choices(TEXTS, k=draw.choice([1, 2])))}
            for role in ["system"] * draw.randint(0, 1) + ["user", "assistant"] * draw.randint(1, 3)
        ]
        expected = theirs.apply_chat_template(
            chat, chat_template=GENERATION, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, trained = training_tokens(made, training_text(made, chat))
        assert ids == expected["input_ids"]
        assert trained == [bool(each) for each in expected["assistant_masks"]], chat
