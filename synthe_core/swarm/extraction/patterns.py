"""Claims by patterns: of a person, by themself or by an answer, and plain statements of the world."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from synthe_core.swarm.extraction.relations import is_functional, relation
from synthe_core.swarm.extraction.sentences import statements
from synthe_core.swarm.knowledge.fact import USER, Claim, key

Speaker = Literal["user", "assistant"]
MAX_OBJECT = 120  # characters; a longer one is a clause, not a thing

_OBJECT = r"(?P<object>[^,;:.!?()]+(?:[.,:]\d[^,;:.!?()]*)*)"
_NOT = r"(?P<no>n't|n’t|'t|’t| not|not| no longer| never)?"
_OPENING = re.compile(
    r"^(?:(?:actually|well|also|and|but|so|hi|hello|hey|no|yes|ok|okay|please|remember|note|sorry|oh|by the way|fyi"
    r"|in fact|as you know|correction|of course|since|because|as|given that|now that)\b[,:!]?\s*(?:that\s+)?)+",
    re.IGNORECASE,
)
_CLOSING = re.compile(
    r"\s+(?:any ?more|any longer|now|today|currently|these days|at the moment|actually|though|too|as well|instead"
    r"|(?:so|and|but|because|since|while|who|which|where|when|although)\s.*)$",
    re.IGNORECASE,
)
_VAGUES = (
    "i me you we us it this that they them there here he she him her something someone everything one what who which"
)
_VAGUE = frozenset(_VAGUES.split())


@dataclass(frozen=True)
class _Pattern:
    """A sentence, and the claim that it makes. relation: its name, or one made from the match."""

    sentence: re.Pattern[str]
    relation: str | Callable[[re.Match[str]], str]
    object: Callable[[re.Match[str]], str] = lambda match: match["object"]
    subject: Callable[[re.Match[str]], str] = lambda match: USER


def _first(text: str) -> re.Pattern[str]:
    """A sentence in the first person. `I` and `my` are the person, who is `you` and `your` in an answer."""
    return re.compile(text.replace("OBJECT", _OBJECT).replace("NOT", _NOT), re.IGNORECASE)


_PERSONAL = (
    _Pattern(_first(r"^my (?:full |first )?name(?: is|'s|’s)NOT OBJECT"), "name"),
    _Pattern(_first(r"^(?:please )?call me (?P<no>)OBJECT"), "name"),
    _Pattern(_first(r"^I(?: am|'m|’m)NOT (?:called|named) OBJECT"), "name"),
    _Pattern(_first(r"^I(?: am|'m|’m)NOT (?P<object>\d{1,3})(?: years old| years of age)?$"), "age"),
    _Pattern(
        _first(r"^I(?: do|'ve|’ve| have| am|'m|’m)?NOT (?:live|living|lived|based|residing|reside) (?:in|at) OBJECT"),
        "lives in",
    ),
    _Pattern(_first(r"^I(?:'ve|’ve| have| just)*(?P<no>) (?:re)?moved (?:from .+? )?to OBJECT"), "lives in"),
    _Pattern(_first(r"^I(?: do| am|'m|’m)?NOT (?:work|working|employed) as (?:an? )?OBJECT"), "occupation"),
    _Pattern(_first(r"^I(?: do| am|'m|’m)?NOT (?:work|working|employed) (?:for|at|by) OBJECT"), "works at"),
    _Pattern(_first(r"^I was(?P<no>n't|n’t| not)? born on (?:the )?OBJECT"), "born on"),
    _Pattern(_first(r"^I was(?P<no>n't|n’t| not)? born in OBJECT"), "born in"),
    _Pattern(_first(r"^I(?: am|'m|’m)NOT allergic to OBJECT"), "allergic to"),
    _Pattern(_first(r"^I(?: am|'m|’m)NOT married to OBJECT"), "married to"),
    _Pattern(_first(r"^I(?: am|'m|’m)NOT (?:a |an )(?P<object>vegan|vegetarian|pescatarian)$"), "diet"),
    _Pattern(_first(r"^I(?: am|'m|’m)NOT (?P<object>vegan|vegetarian|pescatarian)$"), "diet"),
    _Pattern(
        _first(
            r"^I(?: am|'m|’m)NOT an? (?P<object>(?:[\w-]+ ){0,3}"
            r"(?:\w+(?:er|or|ist|ian|ant|ent|eur|ect)|nurse|cook|chef|judge|pilot|doctor|clerk|artist))$"
        ),
        "occupation",
    ),
    _Pattern(_first(r"^I(?: do)?NOT (?:really |also |still )?(?:like|love|enjoy|adore) OBJECT"), "likes"),
    _Pattern(_first(r"^I (?P<no>hate|dislike|can't stand|detest) OBJECT"), "likes"),
    _Pattern(_first(r"^I(?: do)?NOT prefer OBJECT"), "prefers"),
    _Pattern(_first(r"^I(?: do| can)?NOT speak OBJECT"), "speaks"),
    _Pattern(
        _first(r"^I(?: do)?NOT (?:own|have) (?P<object>(?:an? |\d+ |one |two |three |four |five )[\w -]+)$"), "has"
    ),
    _Pattern(
        _first(
            r"^my (?P<relation>[\w'’ -]{2,40}?)(?: is| are| was)NOT"
            r" (?:called |named )?(?!going |getting |trying |too |very |so )OBJECT"
        ),
        lambda match: match["relation"],
    ),
)  # fmt: skip

_THING = r"(?:the )?(?P<subject>[A-Z0-9][\w'’&-]*(?: (?:of|the|de|and|[A-Z0-9][\w'’&-]*))*)"
_WORLD = (
    _Pattern(
        _first(
            r"^(?:the )?(?P<relation>[\w-]+(?: [\w-]+){0,2}) of (?P<subject>[^,;:.!?]{2,60}?) (?:is|was|are)NOT OBJECT"
        ),
        lambda match: match["relation"],
        subject=lambda match: match["subject"],
    ),
    _Pattern(
        re.compile(rf"^{_THING}['’]s? (?P<relation>[\w-]+(?: [\w-]+){{0,2}}) (?:is|was|are){_NOT} {_OBJECT}"),
        lambda match: match["relation"],
        subject=lambda match: match["subject"],
    ),
    _Pattern(
        re.compile(
            rf"^{_THING} (?:is|was|were)?{_NOT} ?(?P<relation>founded|established|born|located|situated|released"
            rf"|written|directed|married|based) (?P<joint>in|on|by|to) {_OBJECT}"
        ),
        lambda match: f"{match['relation']} {match['joint']}",
        subject=lambda match: match["subject"],
    ),
    _Pattern(
        re.compile(
            rf"^{_THING} (?:does|do|did)?{_NOT} ?(?P<relation>costs?|lives? in|works? (?:at|for)|speaks?) {_OBJECT}"
        ),
        lambda match: "cost" if match["relation"].startswith("cost") else match["relation"],
        subject=lambda match: match["subject"],
    ),
)  # fmt: skip


def claims(text: str, speaker: Speaker = "user") -> list[Claim]:
    """The claims of a text in their order, each once.

    In a text of the user `I` is the person; in an answer `you` is. Questions, conditions and reports claim nothing.
    """
    all_claims = [claim for sentence in statements(text) for claim in sentence_claims(sentence, speaker)]
    return list(
        {(key(each.subject), each.predicate, key(each.object), each.negated): each for each in all_claims}.values()
    )


def sentence_claims(sentence: str, speaker: Speaker = "user") -> list[Claim]:
    """The claims of one statement: one of each clause at most."""
    read = (_read(clause, speaker) for clause in _clauses(sentence))
    return [claim for claim in read if claim is not None]


def _clauses(sentence: str) -> Iterator[str]:
    """A sentence and the later clauses of it that can stand alone: "I moved to Rome and I work at Fiat"."""
    sentence = _OPENING.sub("", sentence).rstrip(".!")
    joined = re.split(r"(?:,\s*(?:and|but|so)?\s+|\s+(?:and|but)\s+)(?=(?:I|my|you|your|I'm|you're)\b)", sentence)
    for part in joined:
        yield _OPENING.sub("", part).strip().rstrip(".!")


def _read(clause: str, speaker: Speaker) -> Claim | None:
    first = _as_first_person(clause) if speaker == "assistant" else clause
    for text, patterns in ((first, _PERSONAL), (clause, _WORLD)):
        for pattern in patterns:
            if text and (match := pattern.sentence.match(text)) and (claim := _claim(pattern, match)):
                return claim
    return None


def _as_first_person(sentence: str) -> str | None:
    """An answer's "you live" as the user's "I live"; None where it speaks of itself."""
    if re.match(r"(?i)(?:I|my|I'm|I’m)\b", sentence):
        return None
    turned = re.sub(r"(?i)\byou(?: are|'re|’re)\b", "I am", sentence)
    turned = re.sub(r"(?i)\byou were\b", "I was", turned)
    return re.sub(r"(?i)\byou\b", "I", re.sub(r"(?i)\byour\b", "my", turned))


def _claim(pattern: _Pattern, match: re.Match[str]) -> Claim | None:
    subject = " ".join(pattern.subject(match).split())
    thing = _CLOSING.sub("", " ".join(pattern.object(match).split())).strip(" '\"“”*")
    name = relation(pattern.relation if isinstance(pattern.relation, str) else pattern.relation(match))
    if not key(thing) or len(thing) > MAX_OBJECT or key(thing) in _VAGUE or key(subject) in _VAGUE:
        return None
    functional = is_functional(name) or (subject == USER and pattern.relation is _PERSONAL[-1].relation)
    return Claim(subject, name, thing, bool(match["no"]), functional)
