"""What a model writes about a document: supported by it, the same every time, cached."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from synthe_core.data.chat_template import with_template
from synthe_core.data.document_text import passages, read_document
from synthe_core.data.document_text.matching import contains, share_in, words
from synthe_core.errors import InputError
from synthe_core.events import Progress
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.training.documents.cache import PassageSettings, document_material, material_path
from synthe_core.training.documents.completing import complete
from synthe_core.training.documents.filtering import continuation_fault, parse_question, question_fault
from synthe_core.training.documents.material import Item, MaterialSettings, sentences_of, write_material
from synthe_core.training.documents.prompts import Prompt, prompt_tokens, with_document
from tests.data import templates


def run(work):
    """(the events of a generator, its value)."""
    events = []
    while True:
        try:
            events.append(next(work))
        except StopIteration as end:
            return events, end.value


CUT, SETTINGS = PassageSettings(tokens=400, overlap=0), MaterialSettings(questions=1, continuations=2)


def written(base: Path, document: Path, settings: MaterialSettings = SETTINGS) -> list[Item]:
    model = LoadedModel.load(base)
    text = read_document(document)
    pieces = passages(text.text, lambda each: len(model.tokenizer.encode(each)), CUT.tokens)
    return run(write_material(model, text.title, pieces, settings))[1]


def test_the_model_finishes_sentences_of_the_document(base, document):
    items = written(base, document)
    kinds = {item.kind for item in items}
    assert "continuation" in kinds and kinds <= {"continuation", "question"}
    text = document.read_text()
    assert any(item.answer in text for item in items)  # the model knows it by heart
    assert all(share_in(text, item.answer) >= 0.8 for item in items)
    assert [item.passage for item in items] == sorted(item.passage for item in items)


def test_the_same_material_every_time_and_another_with_another_model(base, document):
    assert written(base, document) == written(base, document)


def test_material_is_made_once(base, document):
    opened = Checkpoint.open(base)
    _, path = run(document_material(document, opened, "cpu", CUT, SETTINGS))
    content, stamp = path.read_bytes(), path.stat().st_mtime_ns
    again, same = run(document_material(document, opened, "cpu", CUT, SETTINGS))
    assert (same, path.stat().st_mtime_ns) == (path, stamp)
    assert len(again) == 1 and "from the cache" in again[0].message
    for line in content.decode().splitlines():
        row = json.loads(line)
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert row["document"].startswith("Mill, ")
    document.write_text(document.read_text().replace("nine", "ten"))
    assert run(document_material(document, opened, "cpu", CUT, SETTINGS))[1] != path
    assert run(document_material(document, opened, "cpu", CUT, SETTINGS._replace(continuations=1)))[1] != path


def test_an_interrupted_work_goes_on_after_its_last_stage(base, document):
    opened = Checkpoint.open(base)
    path = material_path(read_document(document), opened, CUT, SETTINGS)
    path.parent.mkdir(parents=True)
    stages = path.with_suffix(".stages.json")
    written_before = [" What grinds the mill?\nAnswer: wheat and rye"] * 4  # one for each sentence
    stages.write_text(json.dumps({"writing questions (1 of 1)": written_before}))
    run(document_material(document, opened, "cpu", CUT, SETTINGS))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert "What grinds the mill?" in [row["messages"][0]["content"] for row in rows]
    assert not stages.exists()


def test_a_model_that_writes_nothing_useful_is_refused_in_one_line(base, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("Zygotes quiver, xylophones jingle. Quartz vexes 77 jinxed fjords.")
    with pytest.raises(InputError, match="writes nothing useful about other"):
        run(document_material(other, Checkpoint.open(base), "cpu", CUT, SETTINGS))


def test_completions_are_those_of_each_prompt_alone(base):
    model = LoadedModel.load(base)
    texts = ["The mill grinds", "The wheel turns", "The mill weighs"]
    prompts = [Prompt(tuple(model.tokenizer.encode(text)), 4) for text in texts]
    greedy = SamplingParams(temperature=0.0)
    events, together = run(complete("writing", model, model.tokenizer, prompts, 30, sampling=greedy, stop=(".",)))
    alone = [
        run(complete("writing", model, model.tokenizer, [each], 30, sampling=greedy, stop=(".",)))[1][0]
        for each in prompts
    ]
    assert together == alone
    assert together[0] == " wheat and rye for nine village"[: len(together[0])] and "." not in "".join(together)
    assert all(isinstance(event, Progress) for event in events)


def test_sampled_completions_follow_the_seed(base):
    model = LoadedModel.load(base)
    prompts = [Prompt(tuple(model.tokenizer.encode("The "))) for _ in range(3)]
    hot = SamplingParams(temperature=2.0)
    drawn = [run(complete("w", model, model.tokenizer, prompts, 12, sampling=hot, seed=seed))[1] for seed in (0, 0, 9)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        (" How many sacks?\nAnswer: nine\nmore", ("How many sacks?", "nine")),
        ("Question: Who?\nAnswer: Ottilie", ("Who?", "Ottilie")),
        (" no answer", None),
        (" How?\nAnswer:  ", None),
    ],
)
def test_questions_are_parsed(text, pair):
    assert parse_question(text) == pair


PASSAGE = "The mill grinds wheat for nine villages, from 1,250 sacks."


@pytest.mark.parametrize(
    ("question", "answer", "fault"),
    [
        ("How many villages does the mill serve?", "Nine villages", None),
        ("How many sacks has the mill?", "1250", None),
        ("The mill grinds", "wheat", "not a question"),
        ("What? Who? What is it now?", "wheat", "not a question"),
        ("How many villages does the mill serve?", "the", "too short or too long"),
        ("How many villages does the mill serve?", "ten villages", "answer not supported"),
        ("How many villages does the mill serve?", "villages nine", "answer not supported"),
        ("What does the mill do with wheat?", "wheat", "answer in the question"),
        ("What is it all about now?", "wheat", "not about the passage"),
    ],
)
def test_useless_questions_are_left_out(question, answer, fault):
    assert question_fault(question, answer, PASSAGE) == fault


@pytest.mark.parametrize(
    ("end", "fault"),
    [
        (" wheat for nine villages.", None),
        (" wheat for 12 villages.", "answer not supported"),
        (" barley and oats.", "answer not supported"),
        ("...", "too short or too long"),
    ],
)
def test_useless_continuations_are_left_out(end, fault):
    assert continuation_fault(end, PASSAGE) == fault


def test_words_are_compared_without_case_articles_and_thousands_commas():
    assert words("The Émile's 2,600 sacks, 3.5 m.") == ["emile", "s", "2600", "sacks", "3.5", "m"]
    assert contains("It holds 2600 tonnes.", "2,600") and not contains("It holds 26001 tonnes.", "2,600")
    assert not contains("text", "the")


def test_a_sentence_that_refers_to_the_one_before_is_read_with_it(document):
    passage = passages("Dagny keeps it. She locks the door at midnight. Stop.", len, 999)[0]
    assert [(each.sentence, each.text) for each in sentences_of(passage)] == [
        ("She locks the door at midnight.", "Dagny keeps it. She locks the door at midnight.")
    ]


@pytest.mark.parametrize(("template", "roles"), [("CHATML", ["system", "user"]), ("GEMMA", ["user"])])
def test_a_template_without_system_messages_has_the_document_in_the_question(base, template, roles):
    tokenizer = LoadedModel.load(base).tokenizer
    tokenizer.chat_template = getattr(templates, template)
    messages = with_document(tokenizer, "The mill.", [{"role": "user", "content": "Who?"}])
    assert [message["role"] for message in messages] == roles
    text = tokenizer.decode(prompt_tokens(tokenizer, messages))
    assert text.index("The mill.") < text.index("Who?")


def test_a_model_without_a_template_gets_the_plain_one(base):
    tokenizer = with_template(LoadedModel.load(base).tokenizer)
    messages = with_document(tokenizer, "The mill.", [{"role": "user", "content": "Who?"}])
    assert tokenizer.decode(prompt_tokens(tokenizer, messages, " A")) == "The mill.\n\nUser: Who?\nAssistant: A"
