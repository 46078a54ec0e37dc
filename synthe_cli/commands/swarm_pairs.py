"""`synthe swarm pairs`: the preference pairs of a swarm, and their review."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthe_cli.commands.swarm_options import FolderArgument, listing_group
from synthe_cli.escape import escaped, json_text, printable
from synthe_cli.help import SETTINGS, Command
from synthe_cli.options import JsonOption
from synthe_cli.rows import print_rows
from synthe_core.errors import InputError

if TYPE_CHECKING:
    from synthe_core.swarm.feedback.pairs import Pair, Pairs

ABOUT = "Review the preference pairs that specialists learn from."
HEADS = ["pair", "state", "specialist", "source", "prompt", "chosen", "rejected"]
CELL = 40  # characters of a text in the table

app = typer.Typer(cls=listing_group("list"), help=ABOUT, **SETTINGS)
StateOption = Annotated[
    str | None,
    typer.Option("--state", metavar="STATE", help="Only these: new, approved, rejected, learned or refused."),
]
SpecialistOption = Annotated[
    str | None, typer.Option("--specialist", metavar="NAME", help="Only those whose rejected answer it gave.")
]


@app.callback(help=ABOUT)
def _group() -> None: ...


@app.command(
    "list",
    cls=Command,
    short_help="List the pairs.",
    epilog="""\
synthe swarm pairs list team
synthe swarm pairs list team --state new --json""",
)
def list_pairs(
    folder: FolderArgument,
    state: StateOption = None,
    specialist: SpecialistOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the pairs, oldest first. Only approved ones are learned."""
    selected = _select(_open(folder), state, specialist)
    rows = [_cells(pair) for pair in selected]
    print_rows("pair", [_values(pair) for pair in selected], HEADS, rows, as_json, none="there are no such pairs")


@app.command(
    cls=Command,
    short_help="Approve or reject pairs.",
    epilog="""\
synthe swarm pairs review team                      show each new pair and ask
synthe swarm pairs review team --approve 3 --approve 4
synthe swarm pairs review team --reject 5""",
)
def review(
    folder: FolderArgument,
    approve: Annotated[list[int] | None, typer.Option("--approve", metavar="PAIR", help="Repeatable.")] = None,
    reject: Annotated[list[int] | None, typer.Option("--reject", metavar="PAIR", help="Repeatable.")] = None,
    reviewer: Annotated[str, typer.Option("--reviewer", metavar="NAME", help="Who reviews.")] = "operator",
) -> None:
    """Decide which pairs may be learned. Without --approve and --reject, the terminal shows each new pair and asks."""
    pairs = _open(folder)

    from synthe_core.swarm.feedback.pairs import PairState

    decisions = [(id, PairState.APPROVED) for id in approve or []] + [(id, PairState.REJECTED) for id in reject or []]
    if decisions:
        for id, state in decisions:
            print(f"{pairs.review(id, state, reviewer).id}  {state.value}")
        return
    if not sys.stdin.isatty():
        raise InputError("stdin is no terminal to ask on", "name the pairs: --approve PAIR, --reject PAIR")
    _ask(pairs, reviewer)


@app.command(
    cls=Command,
    short_help="Write approved pairs as training data.",
    epilog="""\
synthe swarm pairs export team -o pairs.jsonl
synthe train --objective dpo --data pairs.jsonl --init MODEL""",
)
def export(
    folder: FolderArgument,
    state: Annotated[str, typer.Option("--state", metavar="STATE", help="Those in this state.")] = "approved",
    specialist: SpecialistOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Default: stdout.")] = None,
) -> None:
    """Write pairs as JSON lines with prompt, chosen and rejected, as `synthe train --objective dpo` reads them."""
    lines = [json_text(pair.row()) for pair in _select(_open(folder), state, specialist)]
    if out is None:
        for line in lines:
            print(line)
        return

    from synthe_core.storage.atomic import write_file

    write_file(out, "".join(f"{line}\n" for line in lines))
    print(escaped(out))


def _ask(pairs: Pairs, reviewer: str) -> None:
    from synthe_core.swarm.feedback.pairs import PairState

    answers = {"a": PairState.APPROVED, "r": PairState.REJECTED}
    if not (new := pairs.entries(PairState.NEW)):
        print("there are no new pairs", file=sys.stderr)
    for pair in new:
        note = f", contradicts pair {pair.conflicts_with}" if pair.conflicts_with is not None else ""
        print(f"pair {pair.id} of {escaped(pair.specialist)}, {pair.source.value}{note}")
        for name, text in (("prompt", pair.prompt), ("chosen", pair.chosen), ("rejected", pair.rejected)):
            print(f"{name}:\n" + "\n".join(f"  | {line}" for line in printable(text).splitlines()))
        print("[a]pprove, [r]eject, [s]kip, [q]uit? ", end="", flush=True)
        answer = sys.stdin.readline().strip().lower()[:1]
        if answer in ("q", ""):
            return
        if answer in answers:
            pairs.review(pair.id, answers[answer], reviewer)


def _open(folder: Path) -> Pairs:
    from synthe_core.swarm.feedback.pairs import Pairs
    from synthe_core.swarm.folder import SwarmFolder
    from synthe_core.swarm.opening import open_store, pair_limits

    swarm = SwarmFolder(folder)
    return Pairs(open_store(swarm), pair_limits(swarm))


def _select(pairs: Pairs, state: str | None, specialist: str | None) -> list[Pair]:
    from synthe_core.swarm.feedback.pairs import parse_state

    return pairs.entries(None if state is None else parse_state(state), specialist=specialist)


def _values(pair: Pair) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(pair)


def _cells(pair: Pair) -> list[str]:
    texts = (" ".join(text.split()) for text in (pair.prompt, pair.chosen, pair.rejected))
    short = [text if len(text) <= CELL else f"{text[: CELL - 3]}..." for text in texts]
    return [str(pair.id), pair.state.value, pair.specialist, pair.source.value, *short]
