"""The verb `pack`: a checkpoint and what belongs to it in one file."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from synthe_core.data.tokenizers import FILES
from synthe_core.errors import InputError, unknown
from synthe_core.events import Event, Notice, Progress, Result
from synthe_core.model.session import fingerprint, is_session
from synthe_core.packing.adapters import Shape, adapter_members, adapters_in, check_adapter, parse_named
from synthe_core.packing.agent import read_agent
from synthe_core.packing.archive import Archive
from synthe_core.packing.base import BaseReference, parse_published
from synthe_core.packing.bundle import Bundle
from synthe_core.packing.card import card
from synthe_core.packing.contents import Bytes, Content, FileRange, digest_and_crc, write_archive
from synthe_core.packing.knowledge import copy_database
from synthe_core.packing.loss import measure_loss
from synthe_core.packing.manifest import Base, Memory, PackManifest, Quantization, Score, Training
from synthe_core.packing.members import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    AGENT,
    BASE,
    KNOWLEDGE,
    MANIFEST,
    NAME,
    README,
    SHARD,
    is_weights,
)
from synthe_core.packing.published_adapter import fitted_folder
from synthe_core.packing.titan import is_titan, titan_members
from synthe_core.quantization.formats import FORMATS
from synthe_core.quantization.tensor_file import DequantizedTensors, open_tensors, write_quantized
from synthe_core.storage.adapter_files import check_base, recorded_base
from synthe_core.storage.atomic import scratch_folder
from synthe_core.storage.checkpoint import Checkpoint, copy_checkpoint
from synthe_core.storage.checkpoint.read import ORIGINAL, WEIGHTS
from synthe_core.storage.checkpoint.write import INDEX
from synthe_core.storage.claim import claim
from synthe_core.storage.finite import check_finite
from synthe_core.storage.json_reader import canonical_json, parse_untrusted_json
from synthe_core.storage.manifest import FileDigest
from synthe_core.storage.tensor_file import TensorFile

SCORES = ("bits_per_byte", "loss", "perplexity", "accuracy")


@dataclass(frozen=True)
class PackOptions:
    """What to pack besides the model, and how.

    adapters: NAME=FOLDER each. base: ORG/NAME[@REVISION] of the hub, which has the weights instead of the file;
    weights: False omits them without such a reference. sources, tokens: the text on which quantisation is measured.
    """

    adapters: Sequence[str] = ()
    knowledge: Path | None = None
    sessions: Sequence[Path] = ()
    agent: Path | None = None
    quantize: str | None = None
    name: str | None = None
    licence: str | None = None
    base: str | None = None
    weights: bool = True
    sources: Sequence[str] = ()
    tokens: int = 16_384


@dataclass
class PackContents:
    """The contents collected so far."""

    contents: dict[str, Content] = field(default_factory=dict)
    quantization: Quantization | None = None


def pack(path: Path, out: Path | None = None, options: PackOptions = PackOptions()) -> Iterator[Event]:
    """Writes the checkpoint at `path` into one file and yields events; the last is a Result with its path.

    out: NAME.synapse by default. A .synapse file may be packed again, with additions; a folder of titan-synapse 0.2 is
    converted. The same inputs give the same bytes. Memory does not grow with the model, unless the loss from
    quantisation is measured, which loads the model.
    """
    if options.quantize is not None and options.quantize not in FORMATS:
        raise unknown("quantisation", options.quantize, FORMATS)
    if is_titan(path):
        contents, about = titan_members(path, options.name, options.licence)
        if about.adapters:
            yield Notice("no alpha was recorded for its adapters: they are packed with a scale of 1", "warning")
        out = target_path(out, about.name)
        with claim(out):
            yield from write_pack(out, contents, about, classifies=False)
        return
    checkpoint = Checkpoint.open(path)
    name = options.name or _name(checkpoint)
    if not re.fullmatch(NAME, name):
        raise InputError(f"'{name}' is not a valid name", "letters, digits, . _ and -, no more than 64")
    out = target_path(out, name)
    with claim(out) as target, scratch_folder(target) as scratch:
        given = checkpoint
        if not checkpoint.source.on_disk:
            checkpoint = copy_checkpoint(checkpoint, scratch / "model")
        collected = PackContents(_collect(checkpoint, options, scratch, given))
        yield from _weights(checkpoint, options, collected, scratch)
        about = _manifest(checkpoint, options, collected, name)
        yield from write_pack(out, collected.contents, about, bool(checkpoint.classes))


def target_path(out: Path | None, name: str) -> Path:
    """Where the file is written: `out`, or NAME.synapse. InputError where no file can be."""
    out = Path(f"{name}.synapse") if out is None else out
    if out.is_dir() and os.path.samefile(out, Path.cwd()):
        out = out / f"{name}.synapse"
    if out.is_dir():
        raise InputError(f"{out} is a folder", "a .synapse file is one file: name it with -o")
    if not out.absolute().parent.is_dir():
        raise InputError(f"no such folder: {out.parent}", "make it first")
    if out.suffix != ".synapse" and out.is_file() and out.stat().st_size and not _is_pack(out):
        raise InputError(f"{out} is there already, and is no .synapse file", "name another file with -o")
    return out


def _is_pack(file: Path) -> bool:
    try:
        return MANIFEST in Archive(file)
    except InputError:
        return False


def _name(checkpoint: Checkpoint) -> str:
    source = checkpoint.source
    return source.pack_manifest.name if isinstance(source, Bundle) else checkpoint.recipe.name


def _collect(checkpoint: Checkpoint, options: PackOptions, scratch: Path, given: Checkpoint) -> dict[str, Content]:
    """All contents but weights and manifest: those of a packed source, and those that the options name. given: what
    `checkpoint` is a copy of, or itself."""
    files = checkpoint.manifest.files
    small = [name for name in ("recipe.yaml", "config.json", *FILES) if name in files]
    contents: dict[str, Content] = {name: Bytes(checkpoint.source.read(name)) for name in small}
    if isinstance(checkpoint.source, Bundle):
        packed = [name for name in checkpoint.source.pack_manifest.files if "/" in name or name == AGENT]
        contents |= {name: FileRange(*checkpoint.source.locate(name)) for name in packed}
    if options.agent is not None:
        contents[AGENT] = Bytes(_file(options.agent, "agent file").read_bytes())
    for text in options.adapters:
        name, folder = parse_named(text)
        contents |= adapter_members(name, fitted_folder(given, checkpoint.digest, folder, scratch / name))
    for session in options.sessions:
        if not re.fullmatch(NAME, session.stem):
            raise InputError(f"'{session.stem}' is not a valid name for a session", "letters, digits, . _ and -")
        contents[f"sessions/{session.stem}.safetensors"] = FileRange.of(_file(session, "session"))
    if options.knowledge is not None:
        copy_database(options.knowledge, scratch / "graph.sqlite")
        contents[KNOWLEDGE] = FileRange.of(scratch / "graph.sqlite")
    return contents


def _file(path: Path, what: str) -> Path:
    if not path.is_file():
        raise InputError(f"no such {what}: {path}", "check the path")
    return path


def _weights(
    checkpoint: Checkpoint, options: PackOptions, collected: PackContents, scratch: Path
) -> Generator[Event, None, None]:
    """Adds the weights: as they are, quantised, or by reference."""
    checkpoint.check_sizes()
    for count, name in enumerate(checkpoint.tensors, start=1):
        check_finite(name, checkpoint.tensors[name], checkpoint.path)
        yield Progress("read", count, len(checkpoint.tensors), "tensors")
    files = {name: digest for name, digest in checkpoint.manifest.files.items() if is_weights(name)}
    _check_shards(checkpoint)
    bundle = checkpoint.source if isinstance(checkpoint.source, Bundle) else None
    collected.quantization = bundle.pack_manifest.base.quantization if bundle else None
    if options.base is not None or not options.weights:
        if options.quantize is not None:
            raise InputError(
                "weights that are left out cannot be quantised", "leave out --quantize, or include the weights"
            )
        hub, revision = parse_published(options.base)
        digests = {name: digest.sha256 for name, digest in files.items()}
        reference = BaseReference(name=hub or _name(checkpoint), files=digests, hub=hub, revision=revision)
        collected.contents[BASE] = Bytes(canonical_json(reference.model_dump(mode="json")))
        return
    if options.quantize is None:
        collected.contents |= {name: FileRange(*checkpoint.source.locate(name)) for name in files}
        return
    if any(isinstance(checkpoint.source.tensors(n), DequantizedTensors) for n in files if n.endswith(".safetensors")):
        raise InputError(f"{checkpoint.path} is quantised already", "quantise the checkpoint that it was made from")
    yield Progress("quantise", 0, 1)
    target, tensors = scratch / WEIGHTS, checkpoint.tensors
    shapes = {name: (tensors[name].dtype, tensors.shape(name)) for name in tensors}
    matrices = write_quantized(target, tensors, shapes, options.quantize)
    yield Progress("quantise", 1, 1)
    loss = None
    if not checkpoint.classes:
        loss = yield from measure_loss(checkpoint, open_tensors(target), options.sources, options.tokens)
        change = f"{loss.before:.4f} -> {loss.after:.4f} bits per byte ({loss.after - loss.before:+.4f})"
        yield Notice(f"{options.quantize}: {change} on {loss.tokens:,} tokens of {loss.text}")
    collected.contents[WEIGHTS] = FileRange.of(target)
    collected.quantization = Quantization(
        kind=options.quantize,
        group=FORMATS[options.quantize].group,
        matrices=len(matrices),
        bytes_before=sum(digest.bytes for digest in files.values()),
        bytes_after=collected.contents[WEIGHTS].size,
        loss=loss,
    )


def _check_shards(checkpoint: Checkpoint) -> None:
    """InputError for a file of weights whose name no member may have."""
    for name in checkpoint.manifest.files:
        if "/" not in name and name.endswith(".safetensors") and not re.fullmatch(SHARD, name):
            raise InputError(
                f"{checkpoint.path / name} cannot be packed under this name: files of weights are model*.safetensors",
                f"rename it, in {INDEX} and {MANIFEST} too",
            )


def _manifest(checkpoint: Checkpoint, options: PackOptions, collected: PackContents, name: str) -> PackManifest:
    """The manifest without its files. Checks every member that it describes."""
    contents, manifest, recipe = collected.contents, checkpoint.manifest, checkpoint.recipe
    source_manifest = checkpoint.source.pack_manifest if isinstance(checkpoint.source, Bundle) else None
    if "tokenizer.json" in contents:
        checkpoint.tokenizer()
    adapters = []
    for each in adapters_in(contents):
        config, file = (contents[f"adapters/{each}/{part}"] for part in (ADAPTER_CONFIG, ADAPTER_WEIGHTS))
        values = parse_untrusted_json(b"".join(config.pieces()), f"{ADAPTER_CONFIG} of {each}")
        assert isinstance(file, FileRange)
        tensors = TensorFile(*file, name=f"{ADAPTER_WEIGHTS} of {each}")
        adapters.append(check_adapter(each, values, tensors, _shape_of(checkpoint)))
        check_base(tensors.name, recorded_base(tensors), checkpoint.base_digests, checkpoint.path)
        for key in tensors:
            check_finite(key, tensors[key], tensors.name)
    sessions = _sessions(checkpoint, contents, collected.quantization)
    agent = None
    if AGENT in contents:
        agent = read_agent(b"".join(contents[AGENT].pieces()), str(options.agent or AGENT), [a.name for a in adapters])
    original = {ORIGINAL: checkpoint.digest} if options.quantize is not None else {}
    model = recipe.meta_model(checkpoint.vocab)
    length = recipe.data.sequence
    return PackManifest(
        name=name,
        description=recipe.description,
        base=Base(
            model=BaseReference.read(b"".join(contents[BASE].pieces()), BASE).name if BASE in contents else name,
            carried=BASE not in contents,
            parameters=model.parameter_count(),
            quantization=collected.quantization,
        ),
        memory=Memory(
            weights=4 * model.parameter_count(),
            state={str(tokens): model.state_bytes(tokens) for tokens in sorted({1, length, 8 * length})},
        ),
        capabilities=agent.capabilities if agent else [],
        adapters=adapters,
        specialists=[each.name for each in agent.specialists] if agent else [],
        sessions=sessions,
        training=Training(
            steps=manifest.step,
            tokens=manifest.tokens,
            seconds=manifest.seconds,
            last=manifest.created if manifest.step else None,
        ),
        scores=_scores(checkpoint, collected.quantization),
        parents=manifest.parents,
        licence=options.licence or (source_manifest.licence if source_manifest else None),
        checkpoint=manifest.model_dump(mode="json", exclude={"files"}) | original,
        files={},
    )


def _shape_of(checkpoint: Checkpoint) -> Shape:
    tensors = checkpoint.tensors
    return lambda name: tensors.shape(name) if name in tensors else None


def _sessions(checkpoint: Checkpoint, contents: Mapping[str, Content], quantization: Quantization | None) -> list[str]:
    """The names of the sessions. InputError if one belongs to another model."""
    sessions = [name for name in contents if name.startswith("sessions/")]
    if not sessions:
        return []
    if quantization is not None and not isinstance(checkpoint.source, Bundle):
        raise InputError(
            "a session works only with the model that made it, and the quantised model is another one",
            "leave out --quantize or --session, or make the session with the quantised file",
        )
    meta = checkpoint.recipe.meta_model(checkpoint.vocab)
    own = fingerprint(meta, checkpoint.tensors, checkpoint.weights_digest)
    for name in sessions:
        content = contents[name]
        assert isinstance(content, FileRange)
        file = TensorFile(*content, name=name)
        if not is_session(file):
            raise InputError(f"{content.path} is not a session", "`synthe generate --state-out` writes one")
        for key in file:
            check_finite(key, file[key], content.path)
        if file.metadata.get("model") != own:
            raise InputError(
                f"{content.path} belongs to another model", "a session goes on only with the model that made it"
            )
    return sorted(name.removeprefix("sessions/").removesuffix(".safetensors") for name in sessions)


def _scores(checkpoint: Checkpoint, quantization: Quantization | None) -> list[Score]:
    manifest = checkpoint.manifest
    data = checkpoint.recipe.data
    text = data.validation if isinstance(data.validation, str) else ", ".join(each.source for each in data.sources)
    how = f"validation at step {manifest.step}, on {text}"
    if quantization is not None:
        how += ", before it was quantised"
    scores = [Score(name=name, value=manifest.metrics[name], how=how) for name in SCORES if name in manifest.metrics]
    if quantization is not None and quantization.loss is not None:
        loss = quantization.loss
        how = f"{loss.tokens} held-out tokens of {loss.text}, as quantised"
        scores.append(Score(name="bits_per_byte", value=loss.after, how=how))
    return scores


def write_pack(out: Path, contents: dict[str, Content], manifest: PackManifest, classifies: bool) -> Iterator[Event]:
    """Adds model card, digests and manifest, and writes the file."""
    contents = {README: Bytes(card(manifest, classifies, contents).encode()), **contents}
    total, done = sum(content.size for content in contents.values()), 0
    digests: dict[str, FileDigest] = {}
    sums: dict[str, int] = {}
    for name, content in contents.items():
        digests[name], sums[name] = digest_and_crc(content)
        done += content.size
        yield Progress("check", done, total, "bytes")
    manifest = manifest.model_copy(update={"files": dict(sorted(digests.items()))})
    yield Progress("pack", 0, total, "bytes")
    if out.is_file():
        yield Notice(f"{out} existed, and is replaced")
    write_archive(out, {MANIFEST: Bytes(manifest.to_bytes()), **contents}, sums, claimed=True)
    yield Progress("pack", total, total, "bytes")
    yield Result({"members": len(contents) + 1, "bytes": out.stat().st_size, "name": manifest.name}, out)
