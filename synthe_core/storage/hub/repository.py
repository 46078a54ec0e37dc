"""The files of a repository of the hub, and which of them a model consists of."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import PurePosixPath
from typing import NamedTuple

from synthe_core.errors import InputError, SyntheError, unknown
from synthe_core.storage.hub.access import TIMEOUT, explain, offline, unreachable
from synthe_core.storage.hub.download import RemoteFile
from synthe_core.storage.hub.model_id import COMMIT, HubId
from synthe_core.storage.path_format import ADAPTER, CONFIG

SYNAPSE, GGUF = ".synapse", ".gguf"
INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TOKENIZER = "tokenizer.json"
BESIDE = re.compile(r"[^/]+\.(?:json|jinja|model)|merges\.txt|vocab\.txt|recipe\.yaml")
"""Files of a model folder that are not weights. Pickles and code are never fetched."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
PREFERRED = "q4_k_m"
"""The type of GGUF file where a repository has several, as llama.cpp takes it."""
TYPE = re.compile(r"(?:^|[-._])(i?q\d(?:_[a-z0-9]+)*|tq\d_\d|bf16|f16|f32|mxfp4(?:_moe)?)(?=[-.]|$)")
UNTRUSTED = "this repository is not to be trusted"


class Repository(NamedTuple):
    """The listing of a repository at a commit."""

    repo: str
    commit: str
    files: dict[str, RemoteFile]

    @classmethod
    def read(cls, model: HubId) -> Repository:
        """The listing that the hub gives. InputError for a repository that does not exist or is hostile, WorkError if
        the hub cannot be reached."""
        from huggingface_hub import HfApi  # slow to import, and only needed here

        what = f"'{model.repo}'" + (f" at {model.revision}" if model.revision else "")
        if offline():
            raise unreachable(what)
        try:
            info = HfApi().model_info(model.repo, revision=model.revision, files_metadata=True, timeout=TIMEOUT)
            commit = info.sha or ""
            files = [_remote_file(model.repo, commit, each) for each in info.siblings or []]
        except SyntheError:
            raise
        except Exception as error:  # the hub's library raises errors of many packages
            raise explain(what, error) from error
        if not COMMIT.fullmatch(commit):
            raise InputError(f"{what}: the hub names no commit", "is HF_ENDPOINT a hub?")
        return cls(model.repo, commit, {file.name: file for file in files})


def _remote_file(repo: str, commit: str, entry: object) -> RemoteFile:
    """A file of the hub's answer, whose names and digests become paths here."""
    name, size, lfs = (getattr(entry, key, None) for key in ("rfilename", "size", "lfs"))
    sha256, git_sha1 = getattr(lfs, "sha256", None), getattr(entry, "blob_id", None)
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    if (
        not isinstance(name, str)
        or not parts
        or any(part in ("..", "/") for part in parts)
        or re.search(r"[\\\x00-\x1f]|^[A-Za-z]:", name)
    ):
        raise InputError(f"{repo} lists a file {name!r}, which is not inside of it", UNTRUSTED)
    if type(size) is not int or size < 0:
        raise InputError(f"{repo} lists {name} with a size of {size!r}", UNTRUSTED)
    for digest, form in ((sha256, "[0-9a-f]{64}"), (git_sha1, "[0-9a-f]{40}")):
        if digest is not None and not re.fullmatch(form, str(digest)):
            raise InputError(f"{repo} lists {name} with a digest that is none", UNTRUSTED)
    if sha256 is None and git_sha1 is None:
        raise InputError(f"{repo} lists {name} without a digest", "is HF_ENDPOINT a hub?")
    return RemoteFile(repo, commit, name, size, sha256, git_sha1)


def choose_file(model: HubId, names: Collection[str]) -> str | None:
    """The one file that a model consists of; None if it is a model folder.

    A repository with safetensors is a folder. Otherwise its .synapse file or one of its GGUF files is taken: the one
    that the id names, the only one, or that of the type PREFERRED. InputError for a repository without any of them.
    """
    ggufs = sorted(name for name in names if name.endswith(GGUF) and _holds_a_model(name))
    if model.file is not None:
        if model.file not in names:
            raise unknown(f"file of {model.repo}", model.file, [n for n in names if n.endswith((GGUF, SYNAPSE))])
        return _whole(model, model.file)
    if model.quant is not None:
        return _whole(model, _of_type(model, model.quant, ggufs))
    if is_folder(names):
        return None
    files = sorted(name for name in names if name.endswith(SYNAPSE)) or ggufs
    preferred = [name for name in files if PREFERRED in _types(name)]
    if len(files) == 1 or len(preferred) == 1:
        return _whole(model, files[0] if len(files) == 1 else preferred[0])
    if files:
        kind = PurePosixPath(files[0]).suffix
        raise InputError(
            f"{model.repo} has {len(files)} {kind} files",
            f"name one: {', '.join(f'{model.repo}/{file}' for file in files[:8])}",
        )
    raise _without_model(model, names)


def is_folder(names: Collection[str]) -> bool:
    """Whether files form a model folder: a config, and safetensors beside it."""
    has_config = CONFIG in names or ADAPTER in names
    return has_config and any(name.endswith(".safetensors") and "/" not in name for name in names)


def split_parts(name: str) -> int:
    """The number of files that a GGUF file is split into, by its name."""
    match = re.search(r"-\d{5}-of-(\d{5})\.gguf$", name)
    return int(match[1]) if match else 1


def _whole(model: HubId, name: str) -> str:
    if (count := split_parts(name)) > 1:
        raise InputError(
            f"{name} of {model.repo} is split into {count} files, which synthe does not read", "name a smaller type"
        )
    return name


def _of_type(model: HubId, quant: str, ggufs: list[str]) -> str:
    matches = [name for name in ggufs if quant.lower().removeprefix("ud-") in _types(name)]
    if not matches:
        known = sorted({kind.upper() for name in ggufs for kind in _types(name)})
        if not known:
            raise InputError(f"{model.repo} has no {GGUF} file", f"leave out :{quant}")
        raise unknown(f"type of the {GGUF} files of {model.repo}", quant, known)
    if len(matches) > 1 and not split_parts(matches[0]) > 1:
        raise InputError(
            f"{model.repo} has {len(matches)} {GGUF} files of type {quant}",
            f"name one: {', '.join(f'{model.repo}/{file}' for file in matches[:8])}",
        )
    return matches[0]


def _types(name: str) -> set[str]:
    """The quantisation types in a file's name, in lower case, as llama.cpp writes them."""
    return set(re.findall(TYPE, PurePosixPath(name).name.lower()))


def _holds_a_model(name: str) -> bool:
    """Whether a GGUF file is a language model, and not the projector or statistics of one."""
    return not PurePosixPath(name).name.lower().startswith(("mmproj", "imatrix"))


def _without_model(model: HubId, names: Collection[str]) -> InputError:
    if pickle := next((name for name in sorted(names) if name.endswith(PICKLES)), None):
        return InputError(
            f"{model.repo} has its weights as pickle ({pickle}), which can run any code when it is loaded",
            "name a repository or revision with safetensors (the hub has some as @refs/pr/N), or GGUF files",
        )
    return InputError(
        f"{model.repo} has no model that synthe reads", f"it needs safetensors, a {GGUF} or a {SYNAPSE} file"
    )


def weights_of(index: dict[str, object], manifest: dict[str, object], names: Collection[str]) -> list[str]:
    """The files with the weights of a model folder, in order: those that its index names, or else the usual ones; and
    what the manifest of a checkpoint of ours lists."""
    weight_map = index.get("weight_map")
    if isinstance(weight_map, dict):
        chosen = {file for file in weight_map.values() if isinstance(file, str)}
        if missing := sorted(chosen - set(names)):
            raise InputError(f"there is no {missing[0]}, which {INDEX} names", "the repository is not complete")
    else:
        chosen = {WEIGHTS, ADAPTER_WEIGHTS} & set(names)
    listed = manifest.get("files")
    own = {name for name in listed if name in names} if isinstance(listed, dict) else set()
    return sorted({name for name in chosen | own if not name.endswith(PICKLES)})
