"""The verb `merge`: from several models, or several adapters, to one."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from synthe_core.errors import InputError, SyntheError, WorkError
from synthe_core.evaluation.lm import EvalConfig, evaluate
from synthe_core.events import Event, Notice, Progress, Result, without_results
from synthe_core.merging import adapters, output, stream
from synthe_core.merging.card import card, summary
from synthe_core.merging.config import Form, MergeSpec
from synthe_core.merging.evaluate import checkable, compare, told_apart
from synthe_core.merging.inputs import open_input
from synthe_core.merging.inputs.adapter import Adapter, MergedView
from synthe_core.merging.inputs.model import Changes, Model, Outcome
from synthe_core.merging.method import Method
from synthe_core.merging.plan import merged, of_one_kind, plan
from synthe_core.merging.stream import Job
from synthe_core.merging.tokens import align
from synthe_core.storage.atomic import new_folder
from synthe_core.storage.checkpoint.write import SHARD_BYTES
from synthe_core.storage.manifest import FileDigest
from synthe_core.storage.run_folder import new_run

RECIPE, CARD = "merge.yaml", "README.md"
SPARE = 64 * 2**20  # bytes of disk that must stay free


class Opened(NamedTuple):
    """What a merge is made of; `base` is a Model, of adapters merged as adapters None."""

    form: Form
    inputs: dict[str, Any]
    base: Any


def merge(
    spec: MergeSpec,
    *,
    out: Path | None = None,
    threads: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    hashes: bool = True,
    stop: threading.Event | None = None,
) -> Iterator[Event]:
    """Merges as `spec` says and yields events; the last is a Result with the path of what was written.

    out:     the result's folder; by default runs/NAME, or the next number that is free.
    threads: tensors merged at a time; all cores by default. The result is the same, byte for byte, for any number.
    hashes:  whether the SHA-256 of the parents' files is taken on the way. Checkpoints are then checked by it.

    Inputs are read a tensor at a time, and results written as they come: memory holds a few tensors. The result is
    whole or absent. Raises InputError for what cannot be merged, before any work where that can be known.
    """
    method = Method(spec.merge_method)
    spec.checked()
    opened = open_all(spec, method)
    path = new_run(spec.name or f"merge-{method.name}", out)
    if not hashes:
        for each in [*opened.inputs.values(), *([opened.base] if opened.base else [])]:
            for file in [each.file] if isinstance(each, Adapter) else each.files:
                file.hashed = False
    if opened.form == "model":
        yield from _models(spec, method, opened, path, threads, shard_bytes, stop)
    else:
        yield from _adapters(spec, method, opened, path, threads, stop)


def merge_and_compare(
    spec: MergeSpec, asked: Sequence[str], limit: float | None = None, **options: Any
) -> Iterator[Event]:
    """`merge`, and then the result beside its parents; one Result has the figures of all.

    asked: texts (see `compare`) and tasks of lm-evaluation-harness, at most `limit` questions of each.
    """
    method = Method(spec.merge_method)
    opened = open_all(spec, method)
    if opened.form != "model":
        raise InputError("an adapter alone cannot be evaluated", "merge it into the base: --as model")
    models: dict[str, Model] = {opened.base.named: opened.base} if opened.base is not None else {}
    models |= opened.inputs
    texts, tasks = told_apart(asked)
    checkable(list(models.values()), on_tasks=bool(tasks))
    merges: list[Result] = []
    yield from without_results(merge(spec, **options), merges)
    done = merges[-1]
    assert done.path is not None
    models[str(done.path)] = open_input(str(done.path))
    paths = [model.path for model in models.values()]
    failure = None
    try:
        if texts:
            yield from without_results(compare(models, texts), merges)
        if tasks:
            yield from without_results(
                evaluate(paths, EvalConfig(tasks=tasks, limit=limit), options.get("stop")), merges
            )
    except SyntheError as error:  # the merged model and the results so far stay
        failure = error
    yield Result({name: value for result in merges for name, value in result.values.items()}, done.path)
    if failure is not None:
        raise failure


def open_all(spec: MergeSpec, method: Method) -> Opened:
    """Every model and adapter that is named, each opened once, and how they are to be merged."""
    found: dict[str, Any] = {}

    def at(name: str) -> Any:
        if name not in found:
            model, plus, adapter = name.partition("+") if not Path(name).exists() else (name, "", "")
            found[name] = _joined(at(model), at(adapter)) if plus else open_input(name)
        return found[name]

    inputs = {each.model: at(each.model) for each in spec.inputs}
    base: Any = at(spec.base_model) if spec.base_model is not None else None
    if isinstance(base, Adapter):
        raise InputError(f"{base.named} is an adapter", "the base is a model")
    given = [each for each in inputs.values() if isinstance(each, Adapter)]
    form: Form = spec.form or ("adapter" if len(given) == len(inputs) and base is None else "model")
    if form != "model":
        if other := next((name for name, each in inputs.items() if not isinstance(each, Adapter)), None):
            raise InputError(f"{other} is no adapter", f"as {form} only adapters can be merged: --as model")
        if spec.slices is not None:
            raise InputError("adapters have no slices", "give `models`, or merge them into the base: as: model")
        return Opened(form, inputs, None)
    if spec.rank is not None:
        raise InputError("a rank is for adapters, and models are merged here", "leave it out, or say --as adapter")
    if given and base is None:
        base = at(_base_of(given))
    if base is None and method.needs_base:
        raise InputError(f"{method.name} needs a base", "name one: --base MODEL, or base_model in YAML")
    models = {name: MergedView(base, each) if isinstance(each, Adapter) else each for name, each in inputs.items()}
    return Opened(form, models, base)


def _joined(base: Any, adapter: Any) -> Model:
    if isinstance(base, Adapter) or not isinstance(adapter, Adapter):
        raise InputError(f"{base.named}+{adapter.named} is no model with an adapter", "write MODEL+ADAPTER")
    return MergedView(base, adapter)


def _base_of(found: Sequence[Adapter]) -> str:
    """The one base that adapters name."""
    named = {each.base for each in found}
    if len(named) > 1:
        raise InputError(
            f"the adapters are for different bases: {', '.join(sorted(map(str, named)))}", "name one with --base MODEL"
        )
    base = named.pop()
    if base is None:
        raise InputError(f"{found[0].named} does not name the model it is for", "name it with --base MODEL")
    return base


def _models(
    spec: MergeSpec,
    method: Method,
    opened: Opened,
    path: Path,
    threads: int | None,
    shard_bytes: int,
    stop: threading.Event | None,
) -> Iterator[Event]:
    names = list(opened.inputs)
    of_one_kind([*([opened.base] if opened.base else []), *opened.inputs.values()])
    aligned = align([opened.inputs[name] for name in names], opened.base, spec.vocabulary)
    made = plan(spec, method, dict(zip(names, aligned.models, strict=True)), aligned.base)
    for text in [*aligned.notices, *made.notices]:
        yield Notice(text, "warning")
    reference = aligned.base if aligned.base is not None else aligned.models[0]
    parents = list(dict.fromkeys([*([opened.base] if opened.base else []), *opened.inputs.values()]))
    count = sum(job.facts.numel for job in made.jobs)
    first = next(job.facts.dtype for job in made.jobs if job.facts.floats)
    changes = Changes(str(first).removeprefix("torch."), made.layers, aligned.vocab, aligned.tokenizer)
    names_merged = ", ".join(merged(spec, method, spec.base_model))
    on = f" on {reference.named}" if method.takes_base and opened.base else ""
    yield Notice(f"{method.name} of {names_merged}{on}: {len(made.jobs)} tensors, {count:,} numbers as {changes.dtype}")

    with new_folder(path) as folder:
        files = output.shards(made.jobs, shard_bytes)
        known = yield from _written(folder, "model", files, threads, stop, read=_size(parents))
        facts = [model.facts() for model in parents]
        _beside(folder, path.name, spec, method, facts)
        reference.describe(folder, changes, Outcome(_name(path), count, facts, _said(spec, method), known))
    yield Result(_figures(method, facts, made.jobs, known), path)


def _adapters(
    spec: MergeSpec, method: Method, opened: Opened, path: Path, threads: int | None, stop: threading.Event | None
) -> Iterator[Event]:
    made = adapters.plan(spec, method, opened.inputs, opened.form)
    for text in made.notices:
        yield Notice(text, "warning")
    parents = list(opened.inputs.values())
    yield Notice(f"{method.name} of {len(parents)} adapters, as {opened.form}s: rank {made.config['r']}")
    with new_folder(path) as folder:
        known = yield from _written(
            folder, "adapter_model", [made.jobs], threads, stop, read=sum(each.file.size for each in parents)
        )
        facts = [each.facts() for each in parents]
        _beside(folder, path.name, spec, method, facts, adapter=True)
        adapters.describe(folder, made.config, facts, _said(spec, method), known)
    yield Result(_figures(method, facts, made.jobs, known), path)


def _written(
    folder: Path,
    stem: str,
    files: list[list[Job]],
    threads: int | None,
    stop: threading.Event | None,
    read: int,
) -> Generator[Event, None, dict[str, FileDigest]]:
    """Runs the jobs and writes what they make, telling the bytes; size and SHA-256 of what was written."""
    jobs = [job for each in files for job in each]
    total = sum(job.facts.nbytes for job in jobs)
    free = shutil.disk_usage(folder).free
    if total + SPARE > free:
        raise WorkError(
            f"the disk is full: the result has {total:,} bytes, and {free:,} are free",
            "free some space, or choose --out",
        )
    known: dict[str, FileDigest] = {}
    begun = time.monotonic()
    results = stream.run(jobs, threads, stop)
    for done in output.write(folder, stem, files, results, known):
        share = done / total if total else 1.0
        spent = time.monotonic() - begun
        through = round(share * (total + read))
        yield Progress("merge", through, total + read, "bytes", spent / share - spent if share else None)
    return known


def _beside(
    folder: Path, name: str, spec: MergeSpec, method: Method, parents: list[dict[str, Any]], adapter: bool = False
) -> None:
    (folder / RECIPE).write_text(spec.to_yaml(), encoding="utf-8")
    (folder / CARD).write_text(card(name, spec, method, parents, adapter), encoding="utf-8")


def _said(spec: MergeSpec, method: Method) -> dict[str, Any]:
    """What the manifest says of the merge, beside its parents."""
    asked = spec.model_dump(mode="json", exclude_defaults=True, by_alias=True)
    defaults = {name: each.default for name, each in method.parameters.items() if not each.required}
    return {"summary": summary(spec), "method": method.name, "asked": asked, "defaults": defaults}


def _figures(
    method: Method, parents: Sequence[dict[str, Any]], jobs: Iterable[Job], known: dict[str, FileDigest]
) -> dict[str, object]:
    return {
        "method": method.name,
        "parents": len(parents),
        "parameters": sum(job.facts.numel for job in jobs),
        "bytes": sum(facts.bytes for facts in known.values()),
    }


def _size(parents: Iterable[Model]) -> int:
    """Bytes that are read."""
    return sum(file.size for file in dict.fromkeys(file for model in parents for file in model.files))


def _name(path: Path) -> str:
    """A recipe's name of the result's folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().name).lstrip("._-") or "merged"
