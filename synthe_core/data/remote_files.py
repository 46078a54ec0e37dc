"""Texts of object stores and other remote places, as s3://, gs:// and hf:// name them, through fsspec."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from synthe_core.data.content import COMPRESSED, kind
from synthe_core.data.documents import Piece
from synthe_core.data.files import PLAIN, Files
from synthe_core.data.finding import WILDCARDS
from synthe_core.data.rows import RECORDS
from synthe_core.errors import InputError, SyntheError, unknown

DRIVERS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
"""The packages that synthe[stream] installs; hf:// and local schemes need none."""
ACCESS = "check the name, your credentials and the network"


class RemoteFiles(Files):
    """The texts below a URL: a file, a folder or a pattern, as `s3://bucket/texts/*.jsonl.zst`.

    Files are read in the order of their names, each as a local one of its suffix: it is downloaded whole when it is
    reached, and deleted when it has been read, so that one is on disk at a time.
    """

    def __init__(self, name: str, system: Any, paths: list[str], field: str, label_field: str | None = None) -> None:
        super().__init__(name, [Path(path) for path in paths], field, label_field)
        self._system = system
        self._remote = dict(zip(self.paths, paths, strict=True))

    @classmethod
    def open(cls, name: str, field: str, label_field: str | None = None) -> RemoteFiles:
        """The files that a URL names. InputError if there are none, its scheme is unknown, its driver is not installed,
        or it cannot be read."""
        system, path = _connect(name)
        with access(name):
            paths = _find(system, path)
        if not paths:
            raise InputError(
                f"no text at {name}", "it names a file, a folder or a pattern of .txt, .jsonl, .parquet ..."
            )
        return cls(name, system, sorted(paths), field, label_field)

    def identity(self) -> Any:
        with access(self.name):
            files = [(path, self._system.size(path), self._system.ukey(path)) for path in self._remote.values()]
        return ["remote", self.name, self.field, files]

    def size(self) -> int | None:
        if any(kind(path) in RECORDS or path.suffix.lower() in COMPRESSED for path in self.paths):
            return None
        with access(self.name):
            return sum(self._system.size(path) or 0 for path in self._remote.values())

    def pieces_of(self, path: Path, document: int = 0) -> Iterator[Piece]:
        url = self._system.unstrip_protocol(self._remote[path])
        with TemporaryDirectory(prefix="synthe-remote-") as folder:
            local = Path(folder) / path.name
            with access(url):
                self._system.get_file(self._remote[path], str(local))
            try:
                for piece in super().pieces_of(local, document):
                    yield piece._replace(name=piece.name.replace(str(local), url))
            except SyntheError as error:  # its name is that of the copy
                raise InputError([line.replace(str(local), url) for line in error.lines], error.hint) from None

    def _folder(self, path: Path) -> str:
        return ""


def is_remote(text: str) -> bool:
    """Whether a source is named by a URL."""
    return "://" in text


def _connect(name: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    from fsspec.core import url_to_fs
    from fsspec.registry import known_implementations

    scheme = name.partition("://")[0]
    if scheme not in known_implementations:
        raise unknown("scheme", f"{scheme}://", [f"{each}://" for each in ("s3", "gs", "hf", "https", "file")])
    try:
        with access(name):
            system, path = url_to_fs(name)
    except ImportError as error:
        driver = DRIVERS.get(scheme)
        hint = f"pip install {driver}, or 'synthe[stream]'" if driver else " ".join(str(error).split())[:200]
        raise InputError(f"{scheme}:// needs {driver or 'a driver'}, which is not installed", hint) from None
    return system, str(path)


def _find(system: Any, path: str) -> list[str]:
    """The files that a path stands for; of a folder those with a suffix of text or tables."""
    if set(path) & set(WILDCARDS):
        return [each for each in system.glob(path) if not system.isdir(each)]
    try:
        info = system.info(path)  # `isfile` hides why a store refuses
    except FileNotFoundError:
        return []
    if info["type"] == "file":
        return [path]
    below = system.find(path)
    shown = [
        each for each in below if not any(part.startswith(".") for part in Path(each).parts[len(Path(path).parts) :])
    ]
    return [each for each in shown if kind(Path(each)) in PLAIN | RECORDS.keys()]


@contextmanager
def access(name: str) -> Iterator[None]:
    """Within the block whatever a driver raises is an InputError of one line; each has errors of its own."""
    try:
        yield
    except (SyntheError, ImportError):
        raise
    except FileNotFoundError:
        raise InputError(f"nothing at {name}", ACCESS) from None
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = f"{type(error).__name__}: {lines[0][:200] if lines else 'no reason'}"
        raise InputError(f"cannot read {name}: {reason}", ACCESS) from error
