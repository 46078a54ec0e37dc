"""Finding specialists that a swarm is without: clusters become proposals, whose prompts the base writes."""

from __future__ import annotations

from dataclasses import replace

from synthe_core.errors import WorkError
from synthe_core.swarm.json_writer import JsonWriter
from synthe_core.swarm.spawning.proposals import Proposal, Proposals

SHORTEST, LONGEST = 20, 600
"""Letters of a prompt."""
SCHEMA = {
    "type": "object",
    "properties": {"prompt": {"type": "string", "minLength": SHORTEST, "maxLength": LONGEST}},
    "required": ["prompt"],
    "additionalProperties": False,
}
QUESTION = (
    "Write the instructions for an assistant that answers questions about {terms}. One or two sentences that begin "
    "with 'You are'."
)


def propose(proposals: Proposals, write_json: JsonWriter) -> list[Proposal]:
    """Writes down what is new; returns it. Requests never reach the prompt: who sends them could write it."""
    made = []
    for proposal, centre in proposals.find():
        prompt = prompt_for(proposal.capabilities, write_json)
        made.append(proposals.add(replace(proposal, prompt=prompt), centre))
    return made


def prompt_for(terms: tuple[str, ...], write_json: JsonWriter) -> str:
    """A system prompt by the base; a plain one where what it writes is none."""
    listed = ", ".join(terms)
    plain = f"You are an expert on {listed}. You answer precisely, and say so when you do not know."
    try:
        written = " ".join(str(write_json(QUESTION.format(terms=listed), SCHEMA)["prompt"]).split())
    except WorkError:
        return plain
    is_prompt = written.startswith("You ") and SHORTEST <= len(written) <= LONGEST and written.isprintable()
    return written if is_prompt else plain
