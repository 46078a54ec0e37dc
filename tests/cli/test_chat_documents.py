"""`synthe chat --documents`: each message is read with the passages that belong to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synthe_cli.chat_loop import _passages
from synthe_core.chat.conversation import ChatOptions, Turn
from synthe_core.chat.local import LocalConversation
from synthe_core.chat.with_tools import ToolConversation
from synthe_core.errors import InputError
from synthe_core.events import drain
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.retrieval.document_index import DocumentIndex
from synthe_core.retrieval.indexing import index_documents
from synthe_core.retrieval.retriever import Retriever
from synthe_core.retrieval.search import Searcher
from tests.agents.test_agent import Pick
from tests.cli.test_chat import cache, rows, talker, writer  # noqa: F401
from tests.retrieval.conftest import handbook  # noqa: F401

Run = Callable[..., Any]
OPTIONS = ("-n", 4, "--seed", 1, "-t", 0)


def test_a_folder_is_indexed_and_read(synthe: Run, talker: Path, handbook: Path, cache: Path) -> None:  # noqa: F811
    arguments = ("chat", talker, *OPTIONS, "--documents", handbook, "--json")
    one, two = rows(synthe(*arguments, stdin="Who needs a receipt of taxis?\nzebra?\n"))
    (passage,) = one["passages"]
    assert (passage["citation"], passage["document"], passage["cited"]) == (1, "handbook/travel.txt", False)
    assert passage["text"] == "Trains are paid in second class. Taxis need a receipt."
    assert [each["document"] for each in two["passages"]] == ["handbook/travel.txt"]  # about the message before it
    assert one["prompt_tokens"] > 100 and len(list((cache / "documents").glob("*.db"))) == 1
    (handbook / "travel.txt").write_text("Bicycles are paid.\n")
    (again,) = rows(synthe(*arguments, stdin="Who pays for bicycles?\n"))
    assert [each["text"] for each in again["passages"]] == ["Bicycles are paid."]


def test_an_index_is_searched_as_it_is(synthe: Run, talker: Path, handbook: Path, tmp_path: Path) -> None:  # noqa: F811
    file = tmp_path / "docs.db"
    assert synthe("documents", "index", handbook, "--out", file).exit_code == 0
    done = synthe("chat", talker, *OPTIONS, "--documents", file, stdin="Who pays for taxis?\n")
    assert done.exit_code == 0 and "[1] travel  (handbook/travel.txt)" in done.stderr
    assert "travel.txt" not in done.stdout


@pytest.mark.parametrize("name,message", [("none", "no such file or folder"), (".", "has no documents")])
def test_what_has_no_documents_is_refused(synthe: Run, talker: Path, tmp_path: Path, name: str, message: str) -> None:  # noqa: F811
    (tmp_path / "empty").mkdir()
    done = synthe("chat", talker, "--documents", tmp_path / "empty" / name, stdin="x\n")
    assert done.exit_code == 2 and message in done.stderr


def test_what_has_no_place_for_passages_is_refused(synthe: Run, writer: Path, handbook: Path) -> None:  # noqa: F811
    done = synthe("chat", writer, "--documents", handbook, stdin="x\n")
    assert done.exit_code == 2 and "no chat template" in done.stderr
    done = synthe("chat", "--url", "http://127.0.0.1:1", "--documents", handbook, stdin="x\n")
    assert done.exit_code == 2 and "--documents does not go with --url" in done.stderr


def test_citations_of_an_answer_are_marked(tmp_path: Path, handbook: Path) -> None:  # noqa: F811
    retriever = _retriever(tmp_path, handbook)
    turn = Turn("m", "They are paid [2].", retriever.retrieve("Refunds and holiday, within days?"))
    assert [(each["citation"], each["cited"]) for each in _passages([turn])] == [(1, False), (2, True), (3, False)]
    assert _passages([]) == _passages([Turn("m")]) == []


@pytest.mark.parametrize("tools", [[], [Pick()]])
def test_passages_stand_before_the_message(
    tmp_path: Path,
    handbook: Path,  # noqa: F811
    talker: Path,  # noqa: F811
    tools: list[Pick],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = LoadedModel.load(talker)
    retriever, options = _retriever(tmp_path, handbook), ChatOptions(4, SamplingParams(temperature=0), 1)
    with AsyncEngine([model]) as engine:
        submit, prompts = engine.submit, []

        def record(request: Any) -> Any:
            prompts.append(model.tokenizer.decode(list(request.prompt_token_ids)))
            return submit(request)

        monkeypatch.setattr(engine, "submit", record)
        conversation: Any = (
            ToolConversation(engine, "talker", tools, retriever=retriever)
            if tools
            else LocalConversation(engine, "talker", retriever=retriever)
        )
        list(conversation.send("Who pays for taxis?", options))
        list(conversation.send("How long is the holiday of everybody?", options))
        list(conversation.regenerate(options))
        conversation.close()
    first, second, again = prompts
    assert first.index("Taxis need a receipt.") < first.index("Who pays for taxis?") and "30 days" not in first
    for prompt in (second, again):
        assert prompt.index("30 days of holiday") < prompt.index("How long is the holiday of everybody?")
    assert [turn.message for turn in conversation.turns] == [
        "Who pays for taxis?",
        "How long is the holiday of everybody?",
    ]


def test_the_model_must_have_a_template(tmp_path: Path, handbook: Path, writer: Path) -> None:  # noqa: F811
    with AsyncEngine([LoadedModel.load(writer)]) as engine, pytest.raises(InputError, match="no place for passages"):
        LocalConversation(engine, "writer", retriever=_retriever(tmp_path, handbook))


def _retriever(folder: Path, documents: Path) -> Retriever:
    index = DocumentIndex(folder / "own.db", create=True)
    assert drain(index_documents(index, [documents])).values["added"] == 3
    return Retriever(Searcher(index), 10_000, len)
