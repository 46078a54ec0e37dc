"""A model folder of transformers, with its tokenizer."""

from __future__ import annotations

import hashlib
import json

from synthe_core.data.tokenizers import Tokenizer
from synthe_core.events import Notice
from synthe_core.interop.huggingface.import_tokenizer import tokenizer_of
from synthe_core.interop.huggingface.published import Published
from synthe_core.storage.manifest import FileDigest


class HuggingFaceModel(Published):
    """The tensors of a folder under their published names, each read when it is accessed."""

    format = "huggingface"

    def digest(self) -> str:
        """SHA-256 of the config and of every file with weights."""
        files = {name: FileDigest.of(self.path / name).sha256 for name in sorted(set(self.files.values()))}
        return hashlib.sha256(json.dumps([self.config.values, files], sort_keys=True).encode()).hexdigest()

    def tokenizer(self, vocab: int, notices: list[Notice]) -> Tokenizer | None:
        """The folder's tokenizer, None where it has none; notices are added to `notices`."""
        steps = tokenizer_of(self, vocab)
        while True:
            try:
                event = next(steps)
            except StopIteration as end:
                tokenizer: Tokenizer | None = end.value
                return tokenizer
            assert isinstance(event, Notice)
            notices.append(event)
