"""`synthe swarm knowledge`: what a swarm knows of its users and its world."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthe_cli import figures
from synthe_cli.commands.swarm_options import FolderArgument, listing_group
from synthe_cli.escape import escaped, json_text, printable_json
from synthe_cli.help import SETTINGS, Command
from synthe_cli.hub_models import find_model
from synthe_cli.options import JsonOption
from synthe_cli.renderer import choose_renderer
from synthe_cli.rows import print_rows
from synthe_core.errors import InputError
from synthe_core.events import results

if TYPE_CHECKING:
    from synthe_core.swarm.knowledge.fact import Fact
    from synthe_core.swarm.knowledge.knowledge import Knowledge

ABOUT = "Show and change what a swarm knows of its users and its world."
HEADS = ["fact", "user", "subject", "relation", "object", "source", "state"]

app = typer.Typer(cls=listing_group("search"), help=ABOUT, **SETTINGS)
UserOption = Annotated[
    str, typer.Option("--user", "-u", metavar="NAME", help="Whose facts. Default: those that everybody sees.")
]
FactArgument = Annotated[int, typer.Argument(metavar="FACT", help="The fact's number, as search shows it.")]


@app.callback(help=ABOUT)
def _group() -> None: ...


@app.command(
    cls=Command,
    short_help="Search the facts, or list them.",
    epilog="""\
synthe swarm knowledge search team                          every fact that holds
synthe swarm knowledge search team "where is the office"    the facts that belong to a text, the best first
synthe swarm knowledge search team -u ada --history --json""",
)
def search(
    folder: FolderArgument,
    words: Annotated[str | None, typer.Argument(metavar="WORDS", help="A text. Default: list all.")] = None,
    user: UserOption = "",
    history: Annotated[bool, typer.Option("--history", help="Show facts too that hold no longer.")] = False,
    trusted: Annotated[bool, typer.Option("--trusted", help="Show only facts that enter prompts.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the facts of a user and those that everybody sees. Facts that are not trusted enter no prompt."""
    knowledge = _open(folder)

    from synthe_core.swarm.knowledge.search import search

    if words is not None:
        facts = search(knowledge.facts, user, words, untrusted=not trusted, history=history)
    else:
        names = [""] if user == "" else ["", user]
        each = knowledge.facts.history if history else knowledge.facts.current
        facts = [fact for name in names for fact in each(name) if fact.trusted or not trusted]
    rows = [_cells(fact) for fact in facts]
    print_rows("fact", [_values(fact) for fact in facts], HEADS, rows, as_json, none="no such facts are known")


@app.command(
    cls=Command,
    short_help="Add a fact.",
    epilog="""\
synthe swarm knowledge add team "the office" "opens at" "9:00"
synthe swarm knowledge add team user "lives in" Paris --user ada
synthe swarm knowledge add team user likes coffee --user ada --not""",
)
def add(
    folder: FolderArgument,
    subject: Annotated[str, typer.Argument(metavar="SUBJECT", help="Of whom or what. `user` is the user.")],
    relation: Annotated[str, typer.Argument(metavar="RELATION", help="Such as `capital` or `lives in`.")],
    object: Annotated[str, typer.Argument(metavar="OBJECT", help="Such as `Paris`.")],
    user: UserOption = "",
    negated: Annotated[bool, typer.Option("--not", help="The relation does not hold.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Add a trusted fact and print its number. A fact that it contradicts goes into the history."""
    added = _open(folder).add(user, subject, relation, object, negated=negated)
    if as_json:
        ended = [fact.id for fact in added.superseded]
        print(json_text({"event": "fact", **_values(added.fact), "outcome": added.outcome, "superseded": ended}))
    else:
        print(f"{added.fact.id}  {added.outcome}")


@app.command(
    cls=Command,
    short_help="Correct a fact.",
    epilog="""\
synthe swarm knowledge correct team 7 "Lyon"                a fact of everybody
synthe swarm knowledge correct team 7 "Lyon" --user ada     a fact of a user""",
)
def correct(
    folder: FolderArgument,
    fact: FactArgument,
    object: Annotated[str, typer.Argument(metavar="OBJECT", help="What is right instead.")],
    user: UserOption = "",
) -> None:
    """Replace the object of a fact, and print the number of the new fact. The old one goes into the history."""
    print(_open(folder).correct(user, fact, object, by_operator=True).fact.id)


@app.command(
    cls=Command,
    short_help="Let a fact enter prompts.",
    epilog="""\
synthe swarm knowledge trust team 12                a fact of everybody
synthe swarm knowledge trust team 12 --user ada     a fact of a user""",
)
def trust(folder: FolderArgument, fact: FactArgument, user: UserOption = "") -> None:
    """Mark a fact as trusted. Trusted facts that it contradicts go into the history; their numbers are printed."""
    for each in _open(folder).facts.trust(user, fact).superseded:
        print(each.id)


@app.command(
    cls=Command,
    short_help="Write everything that is stored of a user.",
    epilog="""\
synthe swarm knowledge export team --user ada > ada.json
synthe swarm knowledge export team --user ada -o ada.json""",
)
def export(
    folder: FolderArgument,
    user: UserOption = "",
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Default: stdout.")] = None,
) -> None:
    """Write a user's facts with their history, conversations, answers, ratings and pairs as one JSON object."""
    pieces = map(printable_json, _open(folder).export_lines(user))
    if out is None:
        for piece in pieces:
            print(piece, end="")
        return

    from synthe_core.storage.atomic import WAIT, new_file

    with new_file(out, wait=WAIT) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(pieces)
    print(escaped(out))


@app.command(
    cls=Command,
    short_help="End a fact, or delete all that is stored of a user.",
    epilog="""\
synthe swarm knowledge forget team 7 --user ada       the fact holds no longer; it stays in the history
synthe swarm knowledge forget team --user ada --all   delete everything of ada""",
)
def forget(
    folder: FolderArgument,
    fact: Annotated[int | None, typer.Argument(metavar="FACT", help="The number of a fact that is wrong.")] = None,
    user: UserOption = "",
    everything: Annotated[
        bool, typer.Option("--all", help="Delete every row of the user: facts, conversations, answers and pairs.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """End a fact, or with --all delete a user's data from the database, its index and its log.

    Adapters that were trained with the data are not changed.
    """
    if everything == (fact is not None):
        raise InputError("name a fact, or --all", "synthe swarm knowledge forget TEAM FACT")
    knowledge = _open(folder)
    if fact is not None:
        knowledge.facts.end(user, fact)
        return
    counts = knowledge.forget(user)
    if as_json:
        print(json_text({"event": "forgotten", "user": user, "rows": counts}))
    else:
        print(figures.table(["deleted", "rows"], [[name, str(number)] for name, number in counts.items() if number]))


@app.command(
    cls=Command,
    short_help="Train the classifier that checks answers against facts.",
    epilog="""\
synthe swarm knowledge verifier team --data pairs/
synthe swarm knowledge verifier team --data pairs/ --no-states     faster: reads no states of the base""",
)
def verifier(
    folder: FolderArgument,
    data: Annotated[
        Path,
        typer.Option(
            "--data", "-d", metavar="DIR", help="NAME.train.jsonl and NAME.test.jsonl: premise, hypothesis, label."
        ),
    ],
    states: Annotated[bool, typer.Option("--states/--no-states", help="Use states of the base model.")] = True,
    precision: Annotated[
        float,
        typer.Option("--precision", metavar="P", min=0, max=1, help="Share of flagged training pairs that contradict."),
    ] = 0.8,
    as_json: JsonOption = False,
) -> None:
    """Train the classifier on labelled pairs of sentences, and measure it beside simple rules on the test rows.

    Labels: entailment, neutral, contradiction, or supports, not enough info, refutes. The swarm uses the classifier
    where no rule decides. It belongs to the base: train it again for another one.
    """
    from synthe_core.swarm.folder import SwarmFolder

    swarm = SwarmFolder(folder)

    from synthe_core.interop.load import load_model
    from synthe_core.swarm.checking.claim_states import claim_states
    from synthe_core.swarm.checking.opening import FILE
    from synthe_core.swarm.checking.training import train_verifier

    with choose_renderer(as_json) as shown:
        model = load_model(find_model(swarm.base)) if states else None
        read = None if model is None else partial(claim_states, model)
        events = train_verifier(data, folder / FILE, read, "" if model is None else model.digest, precision)
        for result in results(events, shown.show):
            shown.result(result)


def _open(folder: Path) -> Knowledge:
    from synthe_core.swarm.folder import SwarmFolder
    from synthe_core.swarm.knowledge.knowledge import Knowledge
    from synthe_core.swarm.opening import knowledge_limits, open_store

    swarm = SwarmFolder(folder)
    return Knowledge(open_store(swarm), limits=knowledge_limits(swarm))


def _values(fact: Fact) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(fact)


def _cells(fact: Fact) -> list[str]:
    state = ("trusted" if fact.trusted else "to review") if fact.is_current else "past"
    verb = f"not {fact.predicate}" if fact.negated else fact.predicate
    return [str(fact.id), fact.user or "-", fact.subject, verb, fact.object, fact.source.value, state]
