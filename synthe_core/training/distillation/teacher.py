"""The teacher of a run: any language model of our learners, frozen."""

from __future__ import annotations

from pathlib import Path

import torch

from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError
from synthe_core.interop.hub import local_path
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.student_spec import NO_TEACHER
from synthe_core.storage.checkpoint import Checkpoint


class Teacher:
    """The checkpoint of a teacher, and its model once it is on a device.

    path: a path or an id of the hub. InputError for none, and for what is no language model.
    """

    def __init__(self, path: str | None) -> None:
        if path is None:
            raise InputError(*NO_TEACHER)
        self.checkpoint = Checkpoint.open(local_path(Path(path).expanduser()))
        self._model: LanguageModel | None = None

    @property
    def digest(self) -> str:
        return self.checkpoint.weights_digest

    @property
    def vocab(self) -> int:
        return self.checkpoint.vocab

    def check_tokens(self, tokenizer: Tokenizer) -> None:
        """InputError unless the text is in the teacher's tokens: predictions of other tokens cannot be compared."""
        theirs = self.checkpoint.tokenizer()
        if theirs.digest == tokenizer.digest:
            return
        sizes = f"{theirs.vocab_size:,} tokens, the text's {tokenizer.vocab_size:,}"
        raise InputError(
            f"the tokenizer of the teacher {self.checkpoint.path} is another than the text's: it has {sizes}",
            "leave out data.tokenizer, which is then the teacher's",
        )

    def model(self, device: torch.device) -> LanguageModel:
        """The model in float32, without gradients, loaded once."""
        if self._model is None:
            self._model = self.checkpoint.model(device).eval().requires_grad_(False)
        return self._model
