"""Answers in conversations: judged in both orders, stored, resumed, with intervals."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from synthe_core.errors import InputError, Interrupted
from synthe_core.evaluation.chat.intervals import mean_of
from synthe_core.evaluation.chat.judge import Judge, transcript
from synthe_core.evaluation.chat.models import ChatModel, RemoteChatModel, open_chat_model
from synthe_core.evaluation.chat.questions import Question, read_questions
from synthe_core.evaluation.chat.run import ChatEvaluation, evaluate_chat
from synthe_core.events import drain
from tests.paths import SHARED
from tests.swarm.measure_load import new_team

QUESTIONS = [
    Question(question_id=1, category="a", turns=["one", "two"]),
    Question(question_id=2, category="b", turns=["three"], reference=["3"]),
]


class Scripted(ChatModel):
    """A model whose answers are a function of the last message."""

    def __init__(self, name: str, answer: Callable[[str], str]) -> None:
        self.name = self.identity = name
        self.answer, self.calls = answer, 0

    def reply(
        self, messages: Sequence[Mapping[str, str]], max_tokens: int, schema: Mapping[str, Any] | None = None
    ) -> str:
        self.calls += 1
        return self.answer(messages[-1]["content"])


def longer_is_better(text: str) -> str:
    if "<assistant A>" not in text:
        return json.dumps({"reason": "r", "rating": min(10, len(text.rpartition("Assistant: ")[2]))})
    first, second = text.split("<assistant B>")[0], text.split("<assistant B>")[1]
    lengths = [len(part.rpartition("Assistant: ")[2].partition("\n</assistant")[0]) for part in (first, second)]
    better = "A" if lengths[0] > lengths[1] else "B" if lengths[1] > lengths[0] else "tie"
    return "Here it is: " + json.dumps({"reason": "r", "better": better})


def run(models: Sequence[ChatModel], judge: ChatModel, **options: Any) -> dict[str, Any]:
    return drain(evaluate_chat(models, Judge(judge), ChatEvaluation(QUESTIONS, **options))).values


def test_models_are_rated_by_turn_and_category_and_compared() -> None:
    short, long = Scripted("short", lambda text: "abc"), Scripted("long", lambda text: "abcdefg")
    values = run([short, long], Scripted("judge", longer_is_better))
    rows = {each["model"]: each for each in values["models"]}
    assert rows["short"]["rating"]["value"] == 3 and rows["long"]["rating"]["value"] == 7
    assert [turn["value"] for turn in rows["long"]["turns"]] == [7, 7] and set(rows["long"]["categories"]) == {"a", "b"}
    (pair,) = values["comparisons"]
    assert (pair["first_wins"]["value"], pair["ties"], pair["orders_disagree"]) == (0, 0, 0)


def test_a_judge_that_prefers_a_place_gives_ties() -> None:
    first = Scripted("judge", lambda text: '{"reason": "", "better": "A", "rating": 5}')
    (pair,) = run([Scripted("x", str), Scripted("y", str)], first)["comparisons"]
    assert (pair["first_wins"]["value"], pair["ties"], pair["orders_disagree"]) == (0.5, 2, 2)


@pytest.mark.parametrize(
    "answer", ["", "no JSON", "[]", '{"rating": 11, "better": "C"}', '{"rating": true}', '{"rating": "5"', '{"a": {}}']
)
def test_other_answers_of_the_judge_are_no_judgement(answer: str) -> None:
    values = run([Scripted("x", str), Scripted("y", str)], Scripted("judge", lambda text: answer))
    assert values["models"][0]["rating"] is None and values["models"][0]["not_judged"] == 3
    assert values["comparisons"][0]["first_wins"] is None and values["comparisons"][0]["not_judged"] == 2


def test_an_interrupted_run_resumes_without_asking_again(tmp_path: Path) -> None:
    stop, out = threading.Event(), tmp_path / "answers.jsonl"
    model, judge = Scripted("x", str.upper), Scripted("judge", longer_is_better)
    config = ChatEvaluation(QUESTIONS, out=out)
    events = evaluate_chat([model], Judge(judge), config, stop)
    next(events)
    stop.set()
    with pytest.raises(Interrupted, match="after 1 of 2"):
        list(events)
    assert model.calls == 2  # the turns of one question
    values = drain(evaluate_chat([model], Judge(judge), config)).values
    assert (model.calls, judge.calls) == (3, 3)
    assert drain(evaluate_chat([model], Judge(judge), config)).values == values
    assert (model.calls, judge.calls) == (3, 3)


def test_the_judge_sees_right_answers_and_only_the_turns_so_far() -> None:
    assert transcript(QUESTIONS[0], ["x"]) == "User: one\n\nAssistant: x"
    assert transcript(QUESTIONS[1], ["x"]) == "User: three\n\nA right answer: 3\n\nAssistant: x"


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match="one name"):
        run([Scripted("x", str), Scripted("x", str)], Scripted("judge", str))


def test_intervals_hold_the_mean_and_shrink() -> None:
    few, many = mean_of([1.0, 5.0] * 5), mean_of([1.0, 5.0] * 500)
    assert few is not None and many is not None and mean_of([]) is None
    assert few.low < few.value == many.value == 3 < few.high
    assert many.high - many.low < (few.high - few.low) / 5
    assert mean_of([2.0]) == (2, 2, 2)


def test_questions_are_read_and_bad_lines_are_named(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    good = {"question_id": 1, "turns": ["a"]}
    file.write_text(json.dumps(good) + "\n\n" + json.dumps({**good, "question_id": "x"}) + "\n")
    assert [each.question_id for each in read_questions(file)] == [1, "x"] and len(read_questions(file, 1)) == 1
    for line in ('{"turns": []}', '{"question_id": 2, "turns": [""]}', "[]", "{", json.dumps(good), '{"turns": ["a"]}'):
        file.write_text(json.dumps(good) + "\n" + line)
        with pytest.raises(InputError, match="line 2"):
            read_questions(file)
    file.write_text("")
    for path in (file, tmp_path / "none"):
        with pytest.raises(InputError):
            read_questions(path)


@pytest.mark.skipif(not SHARED.exists(), reason="no data beside the project")
def test_mt_bench_is_read() -> None:
    questions = read_questions(SHARED / "data" / "eval" / "mt_bench_question.jsonl")
    assert len(questions) == 80 and all(len(each.turns) == 2 for each in questions)


def test_servers_need_a_model_and_a_safe_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with pytest.raises(InputError, match="names no model"):
        RemoteChatModel("http://127.0.0.1:6900/v1")
    with pytest.raises(InputError, match="unencrypted"):
        RemoteChatModel("http://8.8.8.8/v1#m")
    assert RemoteChatModel("http://127.0.0.1:6900/v1#m").name == "m"


def test_a_model_of_this_process_answers_and_judges_by_its_schema(tmp_path: Path) -> None:
    with open_chat_model("m", Path(new_team(tmp_path).base), weights="float32") as model:
        model.reply([{"role": "user", "content": "hello"}], 8)
        value = Judge(model).rate(QUESTIONS[1], ["3"])
    assert value is None or 1 <= value <= 10
