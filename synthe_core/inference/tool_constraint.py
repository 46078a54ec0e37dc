"""Which tokens may come next in an answer that may call tools: anything up to a call, and from there its schema."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from synthe_core.data.tokenizers import Tokenizer
from synthe_core.data.tool_calls.format import ToolFormat
from synthe_core.data.tool_calls.grammar import call_grammar
from synthe_core.data.tool_calls.schema import functions_of, root_of
from synthe_core.inference.constraints import (
    JSON_FORMAT,
    Constraint,
    JsonSchemaConstraint,
    compile_grammar,
    compile_json_schema,
)
from synthe_core.inference.named_call import NamedCallConstraint, NameTokens
from synthe_core.inference.request import Grammar, Request, ToolUse

MAX_CALLS = 16
"""Calls of one answer; a small model would not stop by itself."""
CallConstraint = JsonSchemaConstraint | NamedCallConstraint
Phase = Literal["text", "beginning", "either", "forced", "body", "next", "done"]


class ToolCallConstraint:
    """A position in an answer.

    text:      anything is allowed. The format's mark begins a call; no token may reach over its end.
    beginning: the same for a format without a mark: the answer is a call if it begins like one.
    either:    the first token of JSON that is no call, or of the mark.
    forced:    the tokens of a mark, before or after a call.
    body:      a call, or a list of calls, in the format's style.
    next:      after a call: the end, or the mark before another.
    """

    def __init__(
        self, use: ToolUse, marks: Marks, body: CallConstraint, text: JsonSchemaConstraint | None = None
    ) -> None:
        self._use, self._marks, self._body, self._text = use, marks, body, text
        self._matched = 0  # bytes of the mark with which the text ends
        self._num_calls = 0
        self._is_text = False  # the body is JSON that is no call
        self._forced: list[int] = []
        self._then: Phase = "body"
        self._phase: Phase = "text"
        if use.form.anchored:
            self._phase = "body" if use.required else "beginning"
        elif use.required:
            self._force([*marks.opening, *marks.rest], "body")
        elif text is not None:
            self._phase = "either"

    @property
    def done(self) -> bool:
        return self._phase == "done"

    def allowed_tokens(self) -> Tensor | None:
        """bool [V], None for all. Raises InputError where the grammar becomes too complex."""
        match self._phase:
            case "text":
                over = self._marks.reaching_over(self._matched)
                return None if over is None else ~over
            case "beginning":
                over = self._marks.reaching_over(self._matched)
                return None if over is None else ~over | self._body.allowed_tokens()
            case "either" if self._text is not None:
                return self._text.allowed_tokens() | self._marks.only(self._marks.opening[:1])
            case "forced":
                return self._marks.only([self._forced[0]])
            case "next":
                return self._marks.only([*self._marks.ends, self._marks.between[0]])
            case _:
                return self._body.allowed_tokens()

    def accept(self, token_id: int) -> None:
        """Records the generated token."""
        match self._phase:
            case "text":
                self._accept_text(token_id)
            case "beginning":
                self._accept_beginning(token_id)
            case "either" if token_id == self._marks.opening[0]:
                self._force([*self._marks.opening[1:], *self._marks.rest], "body")
            case "either" if self._text is not None:
                self._body, self._phase, self._is_text = self._text, "body", True
                self.accept(token_id)
            case "forced":
                self._forced.pop(0)
                self._after_forced()
            case "body":
                self._body.accept(token_id)
                if self._body.done:
                    self._end_body()
            case "next" if token_id == self._marks.between[0]:
                self._force(self._marks.between[1:], "body")
            case _:
                self._phase = "done"

    def _accept_text(self, token_id: int) -> None:
        if token_id == self._marks.special:
            self._force(self._marks.rest, "body")
            return
        self._matched = self._marks.advance(self._matched, token_id)
        if self._marks.mark and self._matched == len(self._marks.mark):
            self._force(self._marks.rest, "body")

    def _accept_beginning(self, token_id: int) -> None:
        """The grammar follows as long as the answer begins like a call."""
        if not self._body.try_accept(token_id):
            self._phase, self._matched = "text", 0
            self._marks = self._marks.without_mark()
            return
        self._matched += len(self._marks.pieces[token_id])
        if self._matched >= len(self._marks.mark):
            self._phase = "body"

    def _force(self, tokens: Sequence[int], then: Phase) -> None:
        self._forced, self._then, self._phase = list(tokens), then, "forced"
        self._after_forced()

    def _after_forced(self) -> None:
        if self._forced:
            return
        self._phase = self._then
        if self._phase == "body" and self._num_calls:
            self._body = self._body.restarted()

    def _end_body(self) -> None:
        if self._is_text:
            self._phase = "done"
            return
        self._num_calls += 1
        continues = self._use.parallel and self._marks.between and self._num_calls < MAX_CALLS
        self._force(self._marks.closing, "next" if continues else "done")


class Marks:
    """The marks of a format as tokens. `opening` and `rest` come before the first call, `closing` after each,
    `between` before another.

    special: the token that is the opening mark, where it is a special one, which has no text.
    """

    def __init__(self, tokenizer: Tokenizer, vocab: int, form: ToolFormat) -> None:
        mark = form.opening.strip()
        self.vocab, self.pieces = vocab, tokenizer.pieces[:vocab]
        self.ends = sorted(end for end in tokenizer.ends if end < vocab)
        self.opening = tuple(tokenizer.encode_after("\n", mark)) if mark else ()
        self.rest = tuple(tokenizer.encode_after(mark, form.opening.removeprefix(mark))) if mark else ()
        self.closing = tuple(tokenizer.encode_after("}", form.closing)) if form.closing else ()
        self.between: tuple[int, ...] = ()
        if form.between is not None and not form.in_list:
            self.between = tuple(tokenizer.encode_after(form.closing, form.between))
        is_special = len(self.opening) == 1 and not self.pieces[self.opening[0]]
        self.special = self.opening[0] if is_special else None
        self.mark = b"" if is_special else (mark or form.head).encode()
        self._over: dict[int, Tensor] = {}
        self._prepare(anchored=form.anchored)

    def _prepare(self, *, anchored: bool) -> None:
        """Which tokens reach over the end of the mark, by how much of it has come before them."""
        if not self.mark:
            return
        last = self.mark[-1:]
        candidates = [token for token, piece in enumerate(self.pieces) if last in piece[:-1]]
        for matched in range(len(self.mark)):
            over = [token for token in candidates if self._reaches_over(matched, self.pieces[token], anchored)]
            if over:
                self._over[matched] = self.only(over)

    def _reaches_over(self, matched: int, piece: bytes, anchored: bool) -> bool:
        if anchored:
            missing = self.mark[matched:]
            return piece.startswith(missing) and len(piece) > len(missing)
        for place, byte in enumerate(piece):
            matched = self._next(matched, byte)
            if matched == len(self.mark):
                return place < len(piece) - 1
        return False

    def reaching_over(self, matched: int) -> Tensor | None:
        """bool [V]: tokens that reach over the end of the mark after `matched` bytes of it; None for none."""
        return self._over.get(matched)

    def advance(self, matched: int, token_id: int) -> int:
        """How many bytes of the mark the text ends with after the token."""
        if not self.mark or token_id >= len(self.pieces):
            return matched
        for byte in self.pieces[token_id]:
            matched = self._next(matched, byte)
        return matched

    def _next(self, matched: int, byte: int) -> int:
        """One byte further; the mark is short, so that its beginnings are simply compared."""
        text = self.mark[:matched] + bytes([byte])
        return next((size for size in range(len(text), 0, -1) if self.mark.startswith(text[-size:])), 0)

    def only(self, tokens: Sequence[int]) -> Tensor:
        """bool [V]: these tokens."""
        mask = torch.zeros(self.vocab, dtype=torch.bool)
        mask[list(tokens)] = True
        return mask

    def without_mark(self) -> Marks:
        """The same where no call can begin any more."""
        other = Marks.__new__(Marks)
        other.__dict__.update(self.__dict__, mark=b"", special=None, _over={})
        return other


@lru_cache(16)
def _marks(tokenizer: Tokenizer, vocab: int, form: ToolFormat) -> Marks:
    return Marks(tokenizer, vocab, form)


def compile_constraint(tokenizer: Tokenizer, vocab: int, request: Request) -> Constraint | None:
    """What a request's text obeys, None for nothing; see `compile_json_schema`."""
    if request.json_schema is not None:
        return compile_json_schema(tokenizer, vocab, request.json_schema)
    if request.grammar is not None:
        return compile_grammar(tokenizer, vocab, request.grammar)
    if (use := request.tool_use) is None:
        return None
    text = None if use.text is None or use.required else compile_json_schema(tokenizer, vocab, use.text)
    return ToolCallConstraint(use, _marks(tokenizer, vocab, use.form), _compile_call(tokenizer, vocab, use), text)


def _compile_call(tokenizer: Tokenizer, vocab: int, use: ToolUse) -> CallConstraint:
    """What a call obeys, between its marks."""
    if use.form.style == "json":
        return compile_json_schema(tokenizer, vocab, use.schema)
    if use.form.style != "named":
        text = call_grammar(use.form, use.schema, parallel=use.parallel, layout=JSON_FORMAT)
        return compile_grammar(tokenizer, vocab, Grammar("grammar", text))
    arguments = {
        each.name.encode(): compile_json_schema(tokenizer, vocab, {"$ref": f"#/$defs/tool{i}", **root_of(i, each)})
        for i, each in enumerate(functions_of(use.schema))
    }
    return NamedCallConstraint(_name_tokens(tokenizer, vocab), arguments)


@lru_cache(16)
def _name_tokens(tokenizer: Tokenizer, vocab: int) -> NameTokens:
    return NameTokens(tokenizer, vocab)
