"""The verb `merge`: from several models, or several adapters, to one."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from synthe_core.errors import InputError, SyntheError, WorkError
from synthe_core.evaluation.lm import EvalConfig, evaluate
from synthe_core.events import Event, Notice, Progress, Result, without_results
from synthe_core.merging import adapters, output, stream
from synthe_core.merging.base_digest import compare_base
from synthe_core.merging.card import card, summary
from synthe_core.merging.config import Form, MergeSpec
from synthe_core.merging.evaluate import compare, require_runnable, split_targets
from synthe_core.merging.inputs import fetch_inputs, open_input
from synthe_core.merging.inputs.adapter import Adapter
from synthe_core.merging.inputs.merged_view import MergedView
from synthe_core.merging.inputs.model import Changes, Model, Outcome
from synthe_core.merging.method import Method
from synthe_core.merging.plan import merged_models, plan, require_one_kind
from synthe_core.merging.stream import Job
from synthe_core.merging.tokens import align
from synthe_core.storage.atomic import new_folder
from synthe_core.storage.checkpoint.write import SHARD_BYTES
from synthe_core.storage.manifest import FileDigest
from synthe_core.storage.run_folder import new_run

RECIPE, CARD = "merge.yaml", "README.md"
SPARE = 64 * 2**20  # bytes of disk that must stay free


class Opened(NamedTuple):
    """The inputs of a merge by name; `base` is a Model, or None if adapters are merged as adapters."""

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

    out:     the result's folder; by default runs/NAME, or the first free runs/NAME-N.
    threads: tensors merged at a time; by default all cores. Any number gives the same bytes.
    hashes:  computes the SHA-256 of the parents' files while they are read, and checks checkpoints by it.

    Only a few tensors are in memory at a time. The result is written atomically. InputError for models that cannot be
    merged, as far as possible before any work.
    """
    method = Method(spec.merge_method)
    spec.checked()
    yield from fetch_inputs([spec.base_model, *(each.model for each in spec.inputs)])
    opened = open_all(spec, method)
    if not hashes:
        for each in [*opened.inputs.values(), *([opened.base] if opened.base else [])]:
            for file in [each.file] if isinstance(each, Adapter) else each.files:
                file.hashed = False
    with new_run(spec.name or f"merge-{method.name}", out) as path:
        if opened.form == "model":
            yield from _models(spec, method, opened, path, threads, shard_bytes, stop)
        else:
            yield from _adapters(spec, method, opened, path, threads, stop)


def merge_and_compare(
    spec: MergeSpec, targets: Sequence[str], limit: float | None = None, **options: Any
) -> Iterator[Event]:
    """Merges, then evaluates the result beside its parents; one Result has all scores.

    targets: texts (see `compare`) and tasks of lm-evaluation-harness, at most `limit` questions of each.
    """
    method = Method(spec.merge_method)
    yield from fetch_inputs([spec.base_model, *(each.model for each in spec.inputs)])
    opened = open_all(spec, method)
    if opened.form != "model":
        raise InputError("an adapter alone cannot be evaluated", "merge it into the base: --as model")
    models: dict[str, Model] = {opened.base.named: opened.base} if opened.base is not None else {}
    models |= opened.inputs
    texts, tasks = split_targets(targets)
    require_runnable(list(models.values()), on_tasks=bool(tasks))
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
    """Opens every model and adapter of `spec` once, and decides the form of the result."""
    opened: dict[str, Any] = {}

    def resolve(name: str) -> Any:
        if name not in opened:
            model, plus, adapter = name.partition("+") if not Path(name).exists() else (name, "", "")
            opened[name] = _joined(resolve(model), resolve(adapter)) if plus else open_input(name)
        return opened[name]

    inputs = {each.model: resolve(each.model) for each in spec.inputs}
    base: Any = resolve(spec.base_model) if spec.base_model is not None else None
    if isinstance(base, Adapter):
        raise InputError(f"{base.named} is an adapter", "the base is a model")
    adapters = [each for each in inputs.values() if isinstance(each, Adapter)]
    form: Form = spec.form or ("adapter" if len(adapters) == len(inputs) and base is None else "model")
    if form != "model":
        if other := next((name for name, each in inputs.items() if not isinstance(each, Adapter)), None):
            raise InputError(f"{other} is no adapter", f"as {form} only adapters can be merged: --as model")
        if spec.slices is not None:
            raise InputError("adapters have no slices", "give `models`, or merge them into the base: as: model")
        return Opened(form, inputs, None)
    if spec.rank is not None:
        raise InputError("a rank is for adapters, and models are merged here", "leave it out, or say --as adapter")
    if adapters and base is None:
        base = resolve(_base_of(adapters))
    if base is None and method.needs_base:
        raise InputError(f"{method.name} needs a base", "name one: --base MODEL, or base_model in YAML")
    if base is not None:
        compare_base(base.path, base.named, adapters)
    models = {name: MergedView(base, each) if isinstance(each, Adapter) else each for name, each in inputs.items()}
    return Opened(form, models, base)


def _joined(base: Any, adapter: Any) -> Model:
    if isinstance(base, Adapter) or not isinstance(adapter, Adapter):
        raise InputError(f"{base.named}+{adapter.named} is no model with an adapter", "write MODEL+ADAPTER")
    compare_base(base.path, base.named, [adapter])
    return MergedView(base, adapter)


def _base_of(adapters: Sequence[Adapter]) -> str:
    """The base that all adapters name."""
    bases = {each.base for each in adapters}
    if len(bases) > 1:
        raise InputError(
            f"the adapters are for different bases: {', '.join(sorted(map(str, bases)))}", "name one with --base MODEL"
        )
    base = bases.pop()
    if base is None:
        raise InputError(f"{adapters[0].named} does not name the model it is for", "name it with --base MODEL")
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
    require_one_kind([*([opened.base] if opened.base else []), *opened.inputs.values()])
    aligned = align([opened.inputs[name] for name in names], opened.base, spec.vocabulary)
    merge_plan = plan(spec, method, dict(zip(names, aligned.models, strict=True)), aligned.base)
    for text in [*aligned.notices, *merge_plan.notices]:
        yield Notice(text, "warning")
    reference = aligned.base if aligned.base is not None else aligned.models[0]
    parents = list(dict.fromkeys([*([opened.base] if opened.base else []), *opened.inputs.values()]))
    count = sum(job.info.numel for job in merge_plan.jobs)
    dtype = next(job.info.dtype for job in merge_plan.jobs if job.info.floats)
    changes = Changes(str(dtype).removeprefix("torch."), merge_plan.layers, aligned.vocab, aligned.tokenizer)
    names_merged = ", ".join(merged_models(spec, method, spec.base_model))
    base_text = f" on {reference.named}" if method.takes_base and opened.base else ""
    size = f"{len(merge_plan.jobs)} tensors, {count:,} numbers as {changes.dtype}"
    yield Notice(f"{method.name} of {names_merged}{base_text}: {size}")

    with new_folder(path, claimed=True) as folder:
        files = output.shards(merge_plan.jobs, shard_bytes)
        digests = yield from _write_tensors(folder, "model", files, threads, stop, read_bytes=_size(parents))
        provenance = [model.provenance() for model in parents]
        _write_card(folder, path.resolve().name, spec, method, provenance)
        reference.write_files(
            folder, changes, Outcome(_name(path), count, provenance, _description(spec, method), digests)
        )
    yield Result(_summary(method, provenance, merge_plan.jobs, digests), path)


def _adapters(
    spec: MergeSpec, method: Method, opened: Opened, path: Path, threads: int | None, stop: threading.Event | None
) -> Iterator[Event]:
    merge_plan = adapters.plan(spec, method, opened.inputs, opened.form)
    for text in merge_plan.notices:
        yield Notice(text, "warning")
    parents = list(opened.inputs.values())
    yield Notice(f"{method.name} of {len(parents)} adapters, as {opened.form}s: rank {merge_plan.config['r']}")
    with new_folder(path, claimed=True) as folder:
        digests = yield from _write_tensors(
            folder,
            "adapter_model",
            [merge_plan.jobs],
            threads,
            stop,
            read_bytes=sum(each.file.size for each in parents),
            metadata=merge_plan.metadata,
        )
        provenance = [each.provenance() for each in parents]
        _write_card(folder, path.resolve().name, spec, method, provenance, adapter=True)
        adapters.write_adapter_files(folder, merge_plan.config, provenance, _description(spec, method), digests)
    yield Result(_summary(method, provenance, merge_plan.jobs, digests), path)


def _write_tensors(
    folder: Path,
    stem: str,
    files: list[list[Job]],
    threads: int | None,
    stop: threading.Event | None,
    read_bytes: int,
    metadata: Mapping[str, str] | None = None,
) -> Generator[Event, None, dict[str, FileDigest]]:
    """Runs the jobs, writes their results and yields progress; returns size and SHA-256 of the files."""
    jobs = [job for each in files for job in each]
    total = sum(job.info.nbytes for job in jobs)
    free = shutil.disk_usage(folder).free
    if total + SPARE > free:
        raise WorkError(
            f"the disk is full: the result has {total:,} bytes, and {free:,} are free",
            "free some space, or choose --out",
        )
    digests: dict[str, FileDigest] = {}
    began = time.monotonic()
    results = stream.run(jobs, threads, stop)
    for done in output.write(folder, stem, files, results, digests, metadata):
        share = done / total if total else 1.0
        elapsed = time.monotonic() - began
        processed = round(share * (total + read_bytes))
        yield Progress("merge", processed, total + read_bytes, "bytes", elapsed / share - elapsed if share else None)
    return digests


def _write_card(
    folder: Path, name: str, spec: MergeSpec, method: Method, parents: list[dict[str, Any]], adapter: bool = False
) -> None:
    (folder / RECIPE).write_text(spec.to_yaml(), encoding="utf-8")
    (folder / CARD).write_text(card(name, spec, method, parents, adapter), encoding="utf-8")


def _description(spec: MergeSpec, method: Method) -> dict[str, Any]:
    """The manifest's description of the merge, apart from its parents."""
    config = spec.model_dump(mode="json", exclude_defaults=True, by_alias=True)
    defaults = {name: each.default for name, each in method.parameters.items() if not each.required}
    return {"summary": summary(spec), "method": method.name, "config": config, "defaults": defaults}


def _summary(
    method: Method, parents: Sequence[dict[str, Any]], jobs: Iterable[Job], digests: dict[str, FileDigest]
) -> dict[str, object]:
    return {
        "method": method.name,
        "parents": len(parents),
        "parameters": sum(job.info.numel for job in jobs),
        "bytes": sum(digest.bytes for digest in digests.values()),
    }


def _size(parents: Iterable[Model]) -> int:
    """Bytes to read."""
    return sum(file.size for file in dict.fromkeys(file for model in parents for file in model.files))


def _name(path: Path) -> str:
    """A valid recipe name, made from the result's folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().name).lstrip("._-") or "merged"
