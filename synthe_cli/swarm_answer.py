"""An answer of a swarm on the terminal: its text on stdout as it comes, and how it came about on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from synthe_cli.escape import escaped, json_text, printable

if TYPE_CHECKING:
    from synthe_core.swarm.events import Answered, Draft, Routed, SwarmEvent


def show_answer(events: Iterator[SwarmEvent], *, trace: bool, as_json: bool) -> None:
    """Shows the events of an answer until its end."""
    from synthe_core.swarm.events import Answered, AnswerToken, DraftToken, Routed

    drafting = set[str]()
    for event in events:
        if as_json:
            print(json_text(_values(event)), flush=True)
            continue
        match event:
            case Routed():
                if trace:
                    _say(*_routing(event))
            case DraftToken():
                if trace and event.specialist not in drafting:
                    drafting.add(event.specialist)
                    _say(f"drafting: {event.specialist}")
            case AnswerToken():
                print(printable(event.text), end="", flush=True)
            case Answered():
                print(flush=True)
                _say(*_end(event, trace))


def _routing(event: Routed) -> list[str]:
    decision = event.decision
    lines = [f"routed to {', '.join(decision.answering)} in {1000 * decision.seconds:.0f} ms: {decision.why}"]
    if decision.domain:
        lines.append(f"domain: {decision.domain}")
    for each in decision.candidates:
        lines.append(f"  {each.name:<16} {each.probability:6.1%} ± {each.deviation:.1%}")
    return [*lines, *(f"known: {fact}" for fact in event.facts)]


def _end(event: Answered, trace: bool) -> list[str]:
    lines = []
    if trace:
        lines += [_draft(each) for each in event.drafts]
        rate = event.num_output_tokens / event.seconds if event.seconds > 0 else 0.0
        lines.append(f"{event.num_output_tokens} tokens in {event.seconds:.1f} s, {rate:.1f} a second")
    if event.degraded:
        lines.append(f"answered by {event.by} instead: {event.degraded}")
    for each in event.contradictions:
        fact = each["fact"]
        lines.append(
            f"contradicts [f{fact['id']}] {fact['subject']} / {fact['predicate']} / {fact['object']}: "
            f"{each['sentence']}"
        )
    return [*lines, f"{event.answer_id}  by {event.by}, {event.confidence:.0%} confident"]


def _draft(draft: Draft) -> str:
    tokens = draft.num_remembered_tokens
    remembered = f", from its remembered state: {tokens:,} tokens were not read" if tokens else ""
    return f"draft of {draft.specialist}: {draft.confidence:.0%} confident{remembered}"


def _values(event: SwarmEvent) -> dict[str, Any]:
    from synthe_core.swarm.events import Answered, Routed

    name = {"AnswerToken": "token", "DraftToken": "draft"}.get(type(event).__name__, type(event).__name__.lower())
    if isinstance(event, Routed):
        return {"event": name, "answer_id": event.answer_id, **event.decision.json(), "facts": list(event.facts)}
    if isinstance(event, Answered):
        return {"event": name, "text": event.text, **event.json(), "seconds": event.seconds}
    return {"event": name, **asdict(event)}


def _say(*lines: str) -> None:
    for line in lines:
        print(escaped(line), file=sys.stderr, flush=True)
