"""Versions of a specialist's adapter in the swarm's folder, and which of them is current.

adapters/NAME/VERSION/      an adapter in PEFT's format; one that was learned has version.json beside it
adapters/NAME/current.json  the current one, where it is not the one that swarm.yaml names

`current.json` is replaced in one step, so that the current version is the old one or the new one after a kill at any
moment. It holds only as long as swarm.yaml names the adapter that it replaced.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from synthe_core.errors import InputError
from synthe_core.storage.atomic import write_file
from synthe_core.storage.checkpoint import Checkpoint

CURRENT, FACTS = "current.json", "version.json"


@dataclass(frozen=True)
class LearnedVersion:
    """What version.json says of a version that was learned.

    adapter, parent:   the version itself and the one that it was learned from (None: no adapter), as swarm.yaml names
                       adapters.
    digest:            of the adapter's file.
    trained, held_out: the pairs that were learned and those that it was measured on, by id.
    replayed:          earlier ones that were learned again.
    figures:           what the promotion gate measured.
    """

    specialist: str
    adapter: str
    parent: str | None
    digest: str
    trained: tuple[int, ...]
    held_out: tuple[int, ...]
    replayed: tuple[int, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        return asdict(self)


class Versions:
    """The versions of one specialist's adapter.

    folder: of the swarm. origin: the adapter that swarm.yaml names, None for none.
    """

    def __init__(self, folder: Path, name: str, origin: str | None) -> None:
        self._folder, self.name, self.origin = folder, name, origin
        self.path = folder / "adapters" / name

    @property
    def current(self) -> str | None:
        """The current adapter, as swarm.yaml names adapters; None for a specialist without one."""
        try:
            values = json.loads((self.path / CURRENT).read_text(encoding="utf-8"))
            replaced, adapter = values["replaces"], values["adapter"]
        except FileNotFoundError:
            return self.origin
        except (ValueError, KeyError, TypeError, OSError):
            hint = "remove the file: the adapter that swarm.yaml names is current then"
            raise InputError(f"{self.path / CURRENT} is damaged", hint) from None
        return adapter if replaced == self.origin else self.origin

    def set_current(self, adapter: str | None) -> None:
        """Makes another version the current one. The file is on the disk when this returns."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_file(self.path / CURRENT, json.dumps({"adapter": adapter, "replaces": self.origin}) + "\n")

    def next_path(self) -> Path:
        """The folder of the next version. Numbers of versions that are gone are not used again as long as a later one
        is there."""
        taken = [int(each.name) for each in self.path.glob("*") if each.name.isdigit()]
        return self.path / str(max(taken, default=0) + 1)

    def named(self, path: Path) -> str:
        """The version in the folder `path`, as swarm.yaml names adapters."""
        return path.relative_to(self._folder).as_posix()

    def learned(self) -> list[LearnedVersion]:
        """Every version that was learned, the first first."""
        folders = sorted((each for each in self.path.glob("*") if each.name.isdigit()), key=lambda each: int(each.name))
        return [facts for each in folders if (facts := self.facts(self.named(each))) is not None]

    def facts(self, adapter: str | None) -> LearnedVersion | None:
        """What is known of a version that was learned; None for another."""
        if adapter is None:
            return None
        path = self._folder / adapter / FACTS
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            lists = {name: tuple(values[name]) for name in ("trained", "held_out", "replayed")}
            return LearnedVersion(**{**values, **lists})
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, OSError):
            raise InputError(f"{path} is damaged", "restore it from a copy") from None

    def digest(self, adapter: str | None) -> str | None:
        """The digest of a version's file as it is on the disk; None for no adapter. InputError if it is not there."""
        if adapter is None:
            return None
        return Checkpoint.open(self._folder / Path(adapter).expanduser()).digest
