"""Words of a sentence as the checks compare them: without case and endings; negations; words of opposite meaning."""

from __future__ import annotations

import re

_WORD = re.compile(r"[A-Za-zÀ-ÿ]+(?:'[A-Za-z]+)?|\d+(?:[.,]\d+)*")
_NEGATIONS = (
    "not no never none nobody nothing nowhere neither nor without cannot hardly scarcely barely rarely seldom lack "
    "lacks lacked lacking fail fails failed unable refuse refuses refused deny denies denied false untrue incorrect"
)
NEGATIONS = frozenset(_NEGATIONS.split())
_FUNCTION = (
    "a an the of to in on at by for with from into onto as is are was were be been being am do does did has have had "
    "having will would shall should can could may might must and or but that this these those it its he she they his "
    "her their him them there here which who whom whose what when where while then than also i you we my your our me "
    "us so if because about over under up down out off"
)
FUNCTION_WORDS = frozenset(_FUNCTION.split())
_OPPOSITES = """
open/close/shut increase/decrease/reduce rise/fall/drop up/down win/lose start/stop/end begin/end/finish alive/dead
live/die man/woman boy/girl male/female father/mother son/daughter brother/sister husband/wife king/queen old/young
old/new young/elderly big/small large/small tall/short long/short high/low hot/cold warm/cool wet/dry full/empty
heavy/light fast/slow quick/slow early/late before/after first/last same/different true/false right/wrong right/left
good/bad best/worst better/worse more/less/fewer most/least many/few all/none always/never everyone/nobody
everything/nothing everybody/nobody inside/outside indoors/outdoors near/far front/back top/bottom above/below
over/under north/south east/west northern/southern eastern/western day/night morning/evening summer/winter
sit/stand/walk/run asleep/awake wake/sleep push/pull buy/sell give/take send/receive love/hate like/hate like/dislike
accept/reject/refuse agree/disagree allow/forbid/ban/prohibit admit/deny remember/forget find/lose appear/disappear
enter/leave arrive/leave succeed/fail pass/fail build/destroy create/destroy attack/defend guilty/innocent
married/single/divorced rich/poor strong/weak hard/soft hard/easy difficult/easy simple/complex happy/sad angry/calm
quiet/loud noisy/quiet clean/dirty safe/dangerous healthy/sick public/private legal/illegal possible/impossible
present/absent with/without include/exclude positive/negative add/remove put/remove lift/drop dress/undress
black/white dark/bright dark/light water/land sea/land minority/majority minimum/maximum major/minor child/adult
failure/success lost/won defeat/victory fiction/nonfiction fictional/real fake/real climb/descend follow/lead
freeze/melt fry/freeze catch/throw city/countryside ocean/desert
"""
_SETS = [frozenset(group.split("/")) for group in _OPPOSITES.split()]
_ENDINGS = ("ingly", "edly", "ings", "ing", "ied", "ies", "ed", "es", "s", "ly")


def words(text: str) -> list[str]:
    """The words and numbers of a text in lower case; `isn't` is `is` and `not`."""
    result: list[str] = []
    for word in _WORD.findall(text.replace("’", "'")):
        lower = word.lower()
        if lower in ("can't", "cannot"):
            result += ["can", "not"]
        elif lower == "won't":
            result += ["will", "not"]
        elif lower.endswith("n't") and len(lower) > 3:
            result += [lower[:-3], "not"]
        else:
            result.append(lower.removesuffix("'s"))
    return result


def stem(word: str) -> str:
    """A word without the ending of number, tense or adverb, as far as spelling shows it."""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            base = word[: -len(ending)]
            if ending in ("ied", "ies"):
                return base + "y"
            if len(base) > 3 and base[-1] == base[-2] and base[-1] not in "lsz":
                base = base[:-1]  # `running`
            return base.removesuffix("e")
    return word.removesuffix("e") if len(word) > 4 else word


def content(text: str) -> list[str]:
    """The stems of the words that carry meaning, in order; no numbers, negations or function words."""
    skipped = FUNCTION_WORDS | NEGATIONS
    return [stem(word) for word in words(text) if word not in skipped and not word[0].isdigit()]


def negations(text: str) -> int:
    """How many negations a text has."""
    return sum(word in NEGATIONS for word in words(text))


def opposites(first: str, second: str) -> list[tuple[str, str]]:
    """Pairs of opposite words, one of each text, that the other text does not have too."""
    mine, others = {stem(word) for word in words(first)}, {stem(word) for word in words(second)}
    return [
        (a, b)
        for group in _STEMMED
        for a in sorted(group & mine - others)
        for b in sorted(group & others - mine)
        if a != b
    ]


_STEMMED = [frozenset(stem(word) for word in group) for group in _SETS]
