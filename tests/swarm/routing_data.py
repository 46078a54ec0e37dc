"""Requests with the specialist that is right for each: the topics sets, HumanEval and GSM8K of ../shared."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import NamedTuple

from synthe_core.swarm.spec import SpecialistSpec
from tests.paths import SHARED

TOPICS = ("ag_news", "trec", "yahoo_answers_topics", "dbpedia_14")
NUM_TEST_CODE, NUM_MATHEMATICS = 64, 564
CAPABILITIES = {
    "ag_news": {
        "world": "world politics, war, government, elections, diplomacy",
        "sports": "sports, games, teams, championship, players",
        "business": "business, stocks, companies, economy, oil prices",
        "technology": "technology, software, internet, computers, science",
    },
    "trec": {
        "person": "who, people, names of persons",
        "location": "where, cities, countries, places",
        "number": "how many, how much, dates, numbers",
        "abbreviation": "abbreviations, acronyms, what letters stand for",
        "entity": "things, animals, products, colors",
        "description": "definitions, explanations, reasons, how to",
    },
    "yahoo_answers_topics": {
        "society-culture": "society, culture, religion, holidays",
        "science-mathematics": "science, mathematics, physics, chemistry",
        "health": "health, diseases, doctors, diet",
        "education-reference": "education, school, college, words and grammar",
        "computers-internet": "computers, internet, software, websites",
        "sports": "sports, football, teams, players",
        "business-finance": "business, finance, jobs, money",
        "entertainment-music": "entertainment, music, movies, celebrities",
        "family-relationships": "family, relationships, love, marriage",
        "politics-government": "politics, government, law, elections",
    },
    "dbpedia_14": {
        "company": "companies, corporations, firms",
        "educational-institution": "schools, universities, colleges",
        "artist": "artists, musicians, painters, writers",
        "athlete": "athletes, football players, sports careers",
        "office-holder": "politicians, members of parliament, office holders",
        "mean-of-transportation": "ships, aircraft, cars, locomotives",
        "building": "buildings, churches, historic houses",
        "natural-place": "rivers, mountains, lakes",
        "village": "villages, districts, population",
        "animal": "animals, insects, species of beetles",
        "plant": "plants, flowers, species of trees",
        "album": "albums, songs, records by bands",
        "film": "films, movies, directors",
        "written-work": "books, novels, magazines, journals",
    },
}
BESIDE = {"code": "python, functions, programming", "mathematics": "arithmetic, word problems, how many are left"}
"""Specialists that stand beside those of every set."""


class Request(NamedTuple):
    text: str
    specialist: str


def specialists(topic: str) -> dict[str, SpecialistSpec]:
    """Those of a set, with code and mathematics: a name and a few words each, as one would write them."""
    return {
        name: SpecialistSpec.model_validate({"capabilities": words})
        for name, words in {**CAPABILITIES[topic], **BESIDE}.items()
    }


def requests(topic: str, split: str) -> list[Request]:
    """The rows of a topics set."""
    rows = []
    for line in (SHARED / "data" / "topics" / f"{topic}.{split}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        text = row.get("text") or f"{row.get('title', '')} {row.get('content', '')}".strip()
        rows.append(Request(text, "-".join(row["label"].lower().replace("&", " ").split())))
    return rows


def beside(split: str) -> list[Request]:
    """Prompts of HumanEval and questions of GSM8K: 64 each for the test, the others (100 and 500) for training."""
    data: Path = SHARED / "data" / "eval"
    with gzip.open(data / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as file:
        code = [Request(json.loads(line)["prompt"], "code") for line in file]
    lines = (data / "gsm8k_train.jsonl").read_text(encoding="utf-8").splitlines()[:NUM_MATHEMATICS]
    maths = [Request(json.loads(line)["question"], "mathematics") for line in lines]
    if split == "test":
        return code[:NUM_TEST_CODE] + maths[:NUM_TEST_CODE]
    return code[NUM_TEST_CODE:] + maths[NUM_TEST_CODE:]
