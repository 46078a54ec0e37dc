"""`synthe swarm learn`, `rollback` and `history`: what specialists learn, and the versions of their adapters."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from synthe_cli.commands.swarm_options import FolderArgument
from synthe_cli.help import SETTINGS, Command, Group
from synthe_cli.options import JsonOption
from synthe_cli.renderer import choose_renderer
from synthe_cli.rows import print_rows
from synthe_cli.signals import stop_on_signal
from synthe_core.events import Result, results

app = typer.Typer(cls=Group, **SETTINGS)
HEADS = ["time", "specialist", "event", "adapter", "digest", "pairs", "held-out", "other text", "questions", "why"]
OneOption = Annotated[str | None, typer.Option("--specialist", metavar="NAME", help="Only this specialist.")]


@app.command(
    cls=Command,
    short_help="Learn from approved pairs.",
    epilog="""\
synthe swarm learn team                            every specialist that has enough pairs
synthe swarm learn team --now --specialist python  however few there are
synthe swarm learn team --json | jq 'select(.event == "result").values.outcomes'""",
)
def learn(
    folder: FolderArgument,
    specialist: OneOption = None,
    now: Annotated[bool, typer.Option("--now", help="Do not wait for learning.min_pairs pairs.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train the adapters of specialists on approved pairs, and promote each that passes the gate.

    A part of the prompts is held out. The new adapter answers only if it is better on them, not worse on pairs that
    were held out earlier, and not much worse on other text and general questions; swarm.yaml has the bounds. A running
    server takes it up within a second. Ctrl-C saves, and the same command continues. A server learns by itself when it
    is idle.
    """
    from synthe_core.hardware.mkl import request_strict_mode

    request_strict_mode()
    from synthe_core.swarm.folder import SwarmFolder
    from synthe_core.swarm.learning.background import lower_priority
    from synthe_core.swarm.learning.learn import learn as verb

    swarm = SwarmFolder(folder)
    _ = swarm.spec
    lower_priority()
    with choose_renderer(as_json) as shown, stop_on_signal() as stop:
        for result in results(verb(swarm, specialist=specialist, now=now, stop=stop), shown.show):
            shown.close()
            if as_json:
                shown.result(result)
            else:
                _print_outcomes(result)


@app.command(
    cls=Command,
    short_help="Return to the version before.",
    epilog="""\
synthe swarm rollback team python
synthe swarm rollback team python --json           the version that answers now, and its digest""",
)
def rollback(
    folder: FolderArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The specialist's name.")],
    as_json: JsonOption = False,
) -> None:
    """Make the version of a specialist's adapter from which the current one was learned current again.

    A running server takes it up within a second. The pairs of the version that is undone count as refused: approve them
    once more to learn them again.
    """
    from synthe_core.swarm.folder import SwarmFolder
    from synthe_core.swarm.learning.learn import roll_back

    values = roll_back(SwarmFolder(folder), name)
    with choose_renderer(as_json) as shown:
        if as_json:
            shown.result(Result(values, folder))
        else:
            print(f"{name} answers with {values['adapter'] or 'no adapter'}")


@app.command(
    cls=Command,
    short_help="Show what was learned, refused and rolled back.",
    epilog="""\
synthe swarm history team
synthe swarm history team --specialist python --json""",
)
def history(folder: FolderArgument, specialist: OneOption = None, as_json: JsonOption = False) -> None:
    """Show every adapter that came, was promoted, refused or rolled back, with its digest and figures, oldest first.

    held-out: how often the chosen answer of a held-out pair is preferred, before and after; other text: bits per byte;
    questions: how many general ones are right.
    """
    from synthe_core.swarm.folder import SwarmFolder
    from synthe_core.swarm.status import history as entries

    lines = entries(SwarmFolder(folder), specialist)
    values = [{"change": each["event"], **{k: v for k, v in each.items() if k != "event"}} for each in lines]
    none = "nothing was learned, installed or rolled back yet"
    print_rows("ledger", values, HEADS, [_cells(each) for each in lines], as_json, none=none)


def _print_outcomes(result: Result) -> None:
    """A line for each specialist that has learned."""
    outcomes: Any = result.values["outcomes"]
    if not outcomes:
        print("nothing was learned: approve pairs first, synthe swarm pairs review SWARM", file=sys.stderr)
    for each in outcomes:
        held_out = each["figures"]["held_out"]
        accuracy = f"held-out pairs {_arrow(held_out['accuracy'], '{:.0%}')} of {held_out['pairs']}"
        what = each.get("adapter") or "; ".join(each["why"])
        print(f"{each['specialist']}  {each['event']}  {what}  {accuracy}")


def _cells(entry: dict[str, Any]) -> list[str]:
    figures, pairs = entry.get("figures") or {}, entry.get("pairs") or {}
    adapter = entry.get("adapter") or (
        f"adapters/{entry['specialist']}/{entry['version']}" if "version" in entry else "-"
    )
    return [
        time.strftime("%Y-%m-%d %H:%M", time.localtime(entry["time"])),
        entry["specialist"],
        entry["event"],
        adapter,
        (entry.get("digest") or "-")[:12],
        str(pairs.get("trained", "-")),
        _arrow(figures.get("held_out", {}).get("accuracy"), "{:.0%}"),
        _arrow(figures.get("canary_bits_per_byte"), "{:.3f}"),
        _arrow(figures.get("tasks", {}).get("accuracy"), "{:.0%}"),
        "; ".join(entry.get("why", ())) or "-",
    ]


def _arrow(change: dict[str, float] | None, form: str) -> str:
    return "-" if change is None else f"{form.format(change['before'])} -> {form.format(change['after'])}"
