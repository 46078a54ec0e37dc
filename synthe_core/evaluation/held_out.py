"""The text that a model is evaluated on, as tokens of its tokenizer."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from synthe_core.data.corpora import open_source
from synthe_core.data.packing import Corpus, pack
from synthe_core.data.prepare import corpora
from synthe_core.data.shards import Split
from synthe_core.data.spec import DataSpec
from synthe_core.data.streaming.held_out import pack_held_out
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError
from synthe_core.events import Event


def held_out(spec: DataSpec | None, tokenizer: Tokenizer, sources: Sequence[str] = ()) -> Generator[Event, None, Split]:
    """The validation text of a recipe's data; or all of `sources`, written as in a recipe.

    Raises InputError if there is none.
    """
    if sources:
        field, labels = (DataSpec().field, None) if spec is None else (spec.field, spec.labels)
        chosen = [Corpus(open_source(source, field, labels), None, 1.0, labels) for source in sources]
    elif spec is None:
        raise InputError("there is no held-out text: the model has no recipe of ours", "name some: --data FILE")
    else:
        chosen = [corpus for _, corpus in corpora(spec)]
    if spec is not None and spec.stream and not sources:
        places = yield from pack_held_out(chosen, tokenizer)
    else:
        places = []
        for corpus in chosen:
            places.append((yield from pack(corpus, tokenizer)))
    split = Split([(folder, index, "validation") for folder, index in places], tokenizer.widths)
    if split.tokens < 2:
        raise InputError("there is no held-out text: the recipe has no validation text", "name some: --data FILE")
    return split
