"""Which tokens may come next in a call that is a function's name, a mark, and JSON of its arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from synthe_core.data.tokenizers import Tokenizer
from synthe_core.data.tool_calls.format import ARGS
from synthe_core.inference.constraints import JsonSchemaConstraint


class NameTokens:
    """The tokens of a vocabulary by their bytes, and those of the mark after a name."""

    def __init__(self, tokenizer: Tokenizer, vocab: int) -> None:
        self.vocab, self.pieces = vocab, tokenizer.pieces[:vocab]
        self._by_piece: dict[bytes, list[int]] = {}
        for token, piece in enumerate(self.pieces):
            self._by_piece.setdefault(piece, []).append(token)
        self.mark = tuple(tokenizer.encode_after("\n", ARGS))

    def beginning(self, text: bytes) -> list[int]:
        """The tokens that `text` begins with."""
        return [token for size in range(1, len(text) + 1) for token in self._by_piece.get(text[:size], ())]


class NamedCallConstraint:
    """A position in a call. arguments: of each function, by its name."""

    def __init__(self, tokens: NameTokens, arguments: Mapping[bytes, JsonSchemaConstraint]) -> None:
        self._tokens, self._arguments = tokens, arguments
        self._name = b""
        self._mark: Sequence[int] = tokens.mark
        self._body: JsonSchemaConstraint | None = None

    @property
    def done(self) -> bool:
        return self._body is not None and self._body.done

    def allowed_tokens(self) -> Tensor:
        """bool [V]."""
        if self._body is not None:
            return self._body.allowed_tokens()
        mask = torch.zeros(self._tokens.vocab, dtype=torch.bool)
        if len(self._mark) < len(self._tokens.mark):
            mask[self._mark[0]] = True
            return mask
        rests = [name[len(self._name) :] for name in self._arguments if name.startswith(self._name)]
        mask[[token for rest in rests for token in self._tokens.beginning(rest)]] = True
        mask[self._mark[0]] |= b"" in rests
        return mask

    def accept(self, token_id: int) -> None:
        """Records the generated token."""
        if self._body is not None:
            self._body.accept(token_id)
        elif token_id == self._mark[0] and (self._name in self._arguments or len(self._mark) < len(self._tokens.mark)):
            self._mark = self._mark[1:]
            if not self._mark:
                self._body = self._arguments[self._name].restarted()
        else:
            self._name += self._tokens.pieces[token_id]

    def try_accept(self, token_id: int) -> bool:
        """Records the token if it is allowed; returns whether it is."""
        if not bool(self.allowed_tokens()[token_id]):
            return False
        self.accept(token_id)
        return True

    def restarted(self) -> NamedCallConstraint:
        """The same at the beginning of a call."""
        return NamedCallConstraint(self._tokens, self._arguments)
