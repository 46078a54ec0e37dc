"""Data sets of the Hugging Face hub, streamed, and its tokenizers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from synthe_core.data.documents import Piece, PieceReader, Source
from synthe_core.data.rows import label_of, text_of
from synthe_core.errors import InputError, SyntheError
from synthe_core.storage.hub.access import TIMEOUT, explain, offline, unreachable

SPLITS = {"train", "validation", "valid", "dev", "test"}
FORM = "write hub:NAME[@revision][:config or folder][:split]"


class Hub(Source):
    """`hub:NAME[@revision][:config][:split]`: the rows of a data set, streamed; a local folder comes first.

    Without a revision (a branch, tag or commit) the newest is read, once: tokens are cached by this name. One part
    after it is a split where it is one's usual name (train, validation, valid, dev, test), else a configuration.
    The split is `train` unless named. A configuration with a slash is a folder of the data set, such as data/python.
    """

    def __init__(self, name: str, field: str, label_field: str | None = None) -> None:
        self.name = name
        self.field = field
        self.label_field = label_field
        self.dataset, *rest = name.removeprefix("hub:").split(":", 2)
        self.revision: str | None = None
        if not Path(self.dataset).is_dir():
            self.dataset, _, revision = self.dataset.partition("@")
            self.revision = revision or None
        if not self.dataset:
            raise InputError(f"'{name}' names no data set", FORM)
        if len(rest) == 1 and rest[0] in SPLITS:
            rest = ["", rest[0]]
        self.config = rest[0] or None if rest else None
        self.split = rest[1] if len(rest) == 2 and rest[1] else "train"

    def identity(self) -> Any:
        local = Path(self.dataset)
        files = sorted(p for p in local.rglob("*") if p.is_file()) if local.is_dir() else []
        listing = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
        revision = [self.revision] if self.revision is not None else []
        return ["hub", self.dataset, self.config, self.split, self.field, listing, *revision]

    def pieces(self, skip: int = 0) -> Iterator[Piece]:
        return self.pieces_of(self._open_from(skip), skip)

    def reader(self, place: Any = None) -> PieceReader:
        return HubReader(self, place)

    def pieces_of(self, rows: Any, before: int) -> Iterator[Piece]:
        """The pieces of the rows of a data set, of which the first has `before` rows before it."""
        for number, (place, row) in enumerate(self._numbered(rows, before), start=before):
            # An empty row is an empty piece, so that pieces and rows count alike and a resumed run can skip rows.
            text = text_of(row, self.field, place)
            label = label_of(row, self.label_field, place)
            yield Piece.whole(text.encode("utf-8", "replace"), place, number, label)

    def records(self, skip: int = 0) -> Iterator[tuple[str, Any]]:
        """(place, row) of each row without the first `skip`."""
        return self._numbered(self._open_from(skip), skip)

    def _open_from(self, skip: int) -> Any:
        rows = self.open_rows()
        return rows.skip(skip) if skip else rows

    def _numbered(self, rows: Any, number: int) -> Iterator[tuple[str, Any]]:
        iterator = iter(rows)
        while True:
            try:
                row = next(iterator)
            except StopIteration:
                return
            except Exception as error:  # the hub's libraries raise errors of many packages
                stopped = explain(self.name, error)
                raise type(stopped)(
                    f"{stopped.message} (after {number} rows)",
                    "packed rows are stored: run again to continue",
                ) from error
            number += 1
            yield f"{self.name}, row {number}", row

    def open_rows(self) -> Any:
        """The data set of `datasets`: one that streams, or, where the network is forbidden, the one in its cache."""
        import datasets  # takes a second to import

        datasets.disable_progress_bars()
        datasets.logging.set_verbosity_error()
        local = Path(self.dataset).is_dir()
        folder = self.config if self.config is not None and "/" in self.config else None
        try:
            if not local and not offline():
                from huggingface_hub import HfApi

                # This answers at once where `datasets` would retry.
                HfApi().dataset_info(self.dataset, revision=self.revision, timeout=TIMEOUT)
            streaming = local or not offline()  # offline, a data set that was downloaded before is still in its cache
            if not streaming and not datasets.config.HF_HUB_OFFLINE:
                raise unreachable(self.name)  # the libraries read the variable when imported, and would try the network
            return datasets.load_dataset(
                self.dataset,
                None if folder else self.config,
                data_dir=folder,
                split=self.split,
                streaming=streaming,
                revision=self.revision,
            )
        except SyntheError:
            raise
        except (ValueError, FileNotFoundError) as error:
            if local or isinstance(error, ValueError):
                raise InputError(f"{self.name}: {' '.join(str(error).split())[:300]}", FORM) from error
            raise explain(self.name, error) from error
        except Exception as error:  # the hub's libraries raise errors of many packages
            raise explain(self.name, error) from error


class HubReader(PieceReader):
    """The rows of a data set from a place on. `datasets` goes to the file at once, and in it to the row."""

    def __init__(self, hub: Hub, place: Any = None) -> None:
        self._number = 0 if place is None else int(place["rows"])
        state = None if place is None else place["state"]
        self._rows = hub.open_rows()
        self._streams = hasattr(self._rows, "load_state_dict") and (state is not None or not self._number)
        if not self._streams and self._number:
            self._rows = self._rows.skip(self._number)
        elif state is not None:
            self._rows.load_state_dict(state)
        self._pieces = hub.pieces_of(self._rows, self._number)

    @property
    def place(self) -> Any:
        state = self._rows.state_dict() if self._streams and self._number else None
        return {"rows": self._number, "state": state}


def tokenizer_file(name: str) -> Path:
    """The tokenizer.json of ORG/NAME, downloaded unless it is in the hub's cache."""
    from huggingface_hub import HfApi, hf_hub_download, utils  # slow to import, and only needed here
    from huggingface_hub.errors import LocalEntryNotFoundError

    what = f"tokenizer '{name}'"
    utils.disable_progress_bars()
    try:
        try:
            return Path(hf_hub_download(name, "tokenizer.json", local_files_only=True))
        except LocalEntryNotFoundError as error:
            if offline():
                raise unreachable(what) from error
            HfApi().model_info(name, timeout=TIMEOUT)  # answers at once where the download would retry
            return Path(hf_hub_download(name, "tokenizer.json", etag_timeout=TIMEOUT))
    except SyntheError:
        raise
    except Exception as error:  # the hub's library raises errors of many packages
        raise explain(what, error) from error
