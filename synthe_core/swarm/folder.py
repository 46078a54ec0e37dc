"""The folder of a swarm: its swarm.yaml, its database, its specialists' adapters and the ledger of them."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from synthe_core.adapters import peft
from synthe_core.errors import InputError
from synthe_core.storage.atomic import WAIT, new_file, new_folder
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.storage.claim import claim
from synthe_core.storage.hub.model_id import hub_id
from synthe_core.storage.hub.snapshot import model_name
from synthe_core.swarm.prompting import PromptWriter, system_text
from synthe_core.swarm.remote.addresses import Address
from synthe_core.swarm.spec import SpecialistSpec, SwarmSpec, name_fault
from synthe_core.swarm.unknown_name import unknown_name
from synthe_core.swarm.versions import Versions
from synthe_core.swarm.yaml_text import new_text, with_specialist, without_specialist

SPEC, DATABASE, LEDGER, ADAPTERS = "swarm.yaml", "swarm.db", "ledger.jsonl", "adapters"
Specialists = Callable[[dict[str, SpecialistSpec]], dict[str, SpecialistSpec]]


class SwarmFolder:
    """team/swarm.yaml, team/swarm.db, team/adapters/NAME/VERSION, team/ledger.jsonl.

    What it writes is whole or absent, and one process writes at a time. InputError for a folder that is no swarm.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not self.spec_path.is_file():
            hint = f"make one: synthe swarm init {path} --base MODEL"
            raise InputError(f"{path} is no swarm: it has no {SPEC}", hint)

    @classmethod
    def create(cls, path: Path, base: str) -> SwarmFolder:
        """Makes the folder of a new swarm. InputError if there is something already, or `base` is no model."""
        if hub_id(base) is None and not Path(base).expanduser().exists():
            raise InputError(
                f"no such model: {base}", "name a run, a .synapse or GGUF file, a model folder, or ORG/NAME"
            )
        if (path / SPEC).exists():
            raise InputError(f"{path} is a swarm already", f"add a specialist: synthe swarm add {path} NAME")
        if path.is_dir() and any(path.iterdir()):
            raise InputError(f"{path} is not empty", "name a new folder")
        with new_folder(path) as partial:
            (partial / SPEC).write_text(new_text(relative_path(base, path)), encoding="utf-8")
            (partial / ADAPTERS).mkdir()
        return cls(path)

    @property
    def spec_path(self) -> Path:
        return self.path / SPEC

    @property
    def database(self) -> Path:
        return self.path / DATABASE

    @property
    def has_database(self) -> bool:
        """Whether there is a database to look into: one that nobody has used yet is not made for a look."""
        return self.spec.knowledge.database is not None or self.database.exists()

    @cached_property
    def spec(self) -> SwarmSpec:
        """What swarm.yaml says. InputError with the position of every fault."""
        return SwarmSpec.load(self.spec_path)

    def reload(self) -> None:
        """Reads swarm.yaml again when it is next needed."""
        self.__dict__.pop("spec", None)

    def use(self, spec: SwarmSpec) -> None:
        """Goes on with another spec, until swarm.yaml is read again."""
        self.__dict__["spec"] = spec

    @property
    def base(self) -> str:
        """The path of the base, or its id of the hub."""
        return self.resolve(self.spec.base)

    def resolve(self, text: str) -> str:
        """A path of swarm.yaml, which is relative to the folder; an id of the hub as it is."""
        here = self.path / Path(text).expanduser()
        return text if hub_id(text) is not None and not here.exists() else os.path.normpath(here)

    def specialist(self, name: str) -> SpecialistSpec:
        """The specialist of that name; InputError with the nearest one."""
        if name not in self.spec.specialists:
            raise unknown_name("specialist", name, self.spec.specialists)
        return self.spec.specialists[name]

    def versions(self, name: str) -> Versions:
        """The versions of a specialist's adapter; InputError for a name that is none."""
        return Versions(self.path, name, self.specialist(name).adapter)

    def adapter(self, name: str) -> Path | None:
        """The path of the adapter that a specialist answers with now."""
        current = self.versions(name).current
        return None if current is None else Path(self.resolve(current))

    def add(self, name: str, spec: SpecialistSpec, adapter: str | None = None) -> SpecialistSpec:
        """Adds a specialist, with a copy of the adapter at the path `adapter`, and returns it as it is written.

        InputError for a name that is taken, or an adapter of another model.
        """
        if fault := name_fault(name):
            raise InputError(fault)
        self.check_new(name)
        self._check_files(name, spec)
        if adapter is None:
            self._add(name, spec)
            return spec
        target, digest = self._copy_adapter(name, spec, adapter)
        spec = spec.model_copy(update={"adapter": target.relative_to(self.path).as_posix()})
        try:
            self._add(name, spec)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise
        self.record("added", name, version=target.name, digest=digest)
        return spec

    def remove(self, name: str) -> None:
        """Removes a specialist. Its adapters stay in their folder: what they answered refers to them."""
        self.specialist(name)

        def rest(known: dict[str, SpecialistSpec]) -> dict[str, SpecialistSpec]:
            return {each: spec for each, spec in known.items() if each != name}

        self._edit(lambda text: without_specialist(text, name), rest)
        self.record("removed", name)

    def record(self, event: str, specialist: str, **facts: Any) -> None:
        """Adds a line to the ledger."""
        line = {"time": time.time(), "event": event, "specialist": specialist, **facts}
        with claim(self.path / LEDGER, wait=WAIT), (self.path / LEDGER).open("a+b") as file:
            file.seek(0)
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)  # a line that a kill has cut off
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def ledger(self) -> list[dict[str, Any]]:
        """The lines of the ledger, oldest first; a last one that a kill has cut off is left out."""
        try:
            lines = (self.path / LEDGER).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        entries = []
        for number, line in enumerate(lines, 1):
            try:
                entries.append(json.loads(line))
            except ValueError:
                if number < len(lines):
                    raise InputError(
                        f"{self.path / LEDGER}:{number} is no JSON", "restore the line, or remove it"
                    ) from None
        return entries

    def check_new(self, name: str) -> None:
        """InputError for a name that is taken."""
        if name in self.spec.specialists:
            hint = f"remove it first: synthe swarm remove {self.path} {name}"
            raise InputError(f"{self.path} has a specialist '{name}' already", hint)

    def _check_files(self, name: str, spec: SpecialistSpec) -> None:
        """InputError for what would keep the swarm from opening."""
        for document in spec.documents:
            if not Path(self.resolve(document)).is_file():
                raise InputError(f"no such document: {self.resolve(document)}")
        if spec.documents and spec.url is None:
            self._check_length(name, spec)
        if spec.url is not None:
            Address.parse(spec.url)
        elif spec.model is not None and hub_id(spec.model) is None and not Path(self.resolve(spec.model)).exists():
            raise InputError(f"no such model: {self.resolve(spec.model)}")

    def _check_length(self, name: str, spec: SpecialistSpec) -> None:
        """InputError for documents that cannot be read, or that leave no room for a request in the model's context."""
        from synthe_core.swarm.remembered_states import check_length  # of the engine, which takes a second to import

        system = system_text(name, spec, {each: self.resolve(each) for each in spec.documents})
        path = Path(self.base if spec.model is None else self.resolve(spec.model))
        try:
            model = Checkpoint.open(path)
            tokenizer = model.tokenizer()
        except InputError:
            return  # transformers runs it: opening the swarm says whether they fit
        limits = [each for each in (model.context, model.recipe.model.positions) if each is not None]
        check_length(name, PromptWriter(tokenizer, system), model_name(path), min(limits, default=None))

    def _copy_adapter(self, name: str, spec: SpecialistSpec, adapter: str) -> tuple[Path, str]:
        """The adapter's copy and its digest."""
        base = self.base if spec.model is None else self.resolve(spec.model)
        opened = Checkpoint.open(Path(adapter).expanduser(), base=base)
        _ = opened.fitted_adapter  # it is the base's, and its matrices fit
        target = Versions(self.path, name, None).next_path()
        with new_folder(target) as partial:
            for file in (peft.CONFIG, peft.WEIGHTS):
                shutil.copyfile(opened.path / file, partial / file)
        return target, opened.digest

    def _add(self, name: str, spec: SpecialistSpec) -> None:
        def more(known: dict[str, SpecialistSpec]) -> dict[str, SpecialistSpec]:
            self.check_new(name)
            return {**known, name: spec}

        self._edit(lambda text: with_specialist(text, name, spec), more)

    def _edit(self, change: Callable[[str], str], specialists: Specialists) -> None:
        """Replaces swarm.yaml by what `change` makes of it. specialists: those that it should have then, of those that
        it has. InputError where it has others: the file is in a form that only its author can change."""
        with new_file(self.spec_path, wait=WAIT) as partial:
            self.reload()  # another process may have changed it while this one waited
            expected = specialists(self.spec.specialists)
            partial.write_text(change(self.spec_path.read_text(encoding="utf-8")), encoding="utf-8")
            try:
                written = SwarmSpec.load(partial)
            except InputError:
                written = None
            if written is None or written != self.spec.model_copy(update={"specialists": expected}):
                raise InputError(f"{self.spec_path} cannot be changed as it is written", "edit `specialists` by hand")
        self.reload()


def relative_path(base: str, folder: Path) -> str:
    """A path as swarm.yaml has it: relative to the folder if it was given as relative."""
    path = Path(base).expanduser()
    if hub_id(base) is not None or path.is_absolute():
        return str(base)
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
