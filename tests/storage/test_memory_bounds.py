"""Files of strangers that ask for more memory than they are worth are refused before anything is made of them.

Each case runs in a process that may take little more than it has, and says why in one line."""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from synthe_core.data.tokenizer_limits import check_limits
from synthe_core.data.tokenizers import END, load_tokenizer, read_tokenizer
from synthe_core.errors import InputError
from synthe_core.interop.importer import import_hf
from synthe_core.packing.inspect import inspect
from synthe_core.packing.verify import verify
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.storage.manifest import MANIFEST, Manifest
from synthe_core.storage.tensor_file import TensorFile
from tests.merging.models import CONFIG, folder, llama
from tests.packing.conftest import write_checkpoint
from tests.packing.hostile import rebuild

ROOM = 700 << 20  # bytes that a case may take beside what the process has
SECONDS = 60  # of processor time


def within_bounds(use: Callable[[], Any]) -> str:
    """The message of the InputError that `use` raises, in a child of this process with bounds on memory and time."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            try:
                use()
                text = "nothing was refused"
            except InputError as error:
                text = f"refused: {error.message}"
            except BaseException:
                text = traceback.format_exc()
            os.write(writer, text.encode()[:60_000])
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return text


pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def tokenizer(**changes: Any) -> dict[str, Any]:
    vocab = {chr(97 + n): n for n in range(26)} | {END: 26}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": None, "post_processor": None, "decoder": None,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    } | changes  # fmt: skip


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


DOUBLED = {"type": "Sequence", "normalizers": [replace({"String": "a"}, "aa")] * 40}
NESTED = {"type": "Sequence", "normalizers": [DOUBLED, {"type": "Sequence", "normalizers": [DOUBLED]}]}
TOKENIZERS: dict[str, tuple[dict[str, Any], str]] = {
    "an id of four billion": (
        tokenizer(model={"type": "BPE", "vocab": {"a": 0, "b": 4_000_000_000}, "merges": []}), "has the id 4000000000"
    ),
    "words": (tokenizer(model={"type": "WordLevel", "vocab": {"a": 2**31}, "unk_token": "a"}), "has the id 2147483648"),
    "an added token": (
        tokenizer(added_tokens=[{"id": 3_999_999_999, "content": "x", "single_word": False, "lstrip": False,
                                 "rstrip": False, "normalized": False, "special": True}]), "has the id 3999999999"
    ),
    "chained replacements": (tokenizer(normalizer=DOUBLED), "1.1e+12 times as long"),
    "nested replacements": (tokenizer(normalizer=NESTED), "times as long"),
    "one large replacement": (tokenizer(normalizer=replace({"String": "a"}, "b" * 10**6)), "1e+06 times as long"),
    "an empty match": (tokenizer(normalizer=replace({"Regex": "x*"}, "b" * 100)), "200 times as long"),
    "prefixes": (
        tokenizer(normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "x" * 9999}] * 9}),
        "times as long",
    ),
    "a prefix of every letter": (
        tokenizer(model={"type": "BPE", "vocab": {"a": 0}, "merges": [], "continuing_subword_prefix": "x" * 10**6}),
        "continuing_subword_prefix has 1000000 characters",
    ),
    "words in quadratic time": (
        tokenizer(model={"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a", "continuing_subword_prefix": "##",
                         "max_input_chars_per_word": 10**9}), "max_input_chars_per_word is 1000000000"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_tokenizer(case: str) -> None:
    values, message = TOKENIZERS[case]
    text = within_bounds(lambda: read_tokenizer(json.dumps(values).encode(), "x").encode("a" * 10_000))
    assert text.startswith("refused: ") and message in text and "\n" not in text


@pytest.mark.parametrize(
    "normalizer",
    [
        None,
        {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace({"String": " "}, "▁")]},
        {"type": "Sequence", "normalizers": [replace({"String": "``"}, '"'), replace({"Regex": " {2,}"}, " ")] * 9},
        {"type": "NFKC"},
        {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "Lowercase"}, {"type": "StripAccents"}]},
    ],
)
def test_normalizers_as_models_have_them_are_read(normalizer: Any) -> None:
    values = tokenizer(normalizer=normalizer)
    check_limits(values)
    assert read_tokenizer(json.dumps(values).encode(), "x").encode("abc")


def test_a_tokenizer_of_many_small_values(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"[" + b"[]," * 40_000_000 + b"[]]")
    text = within_bounds(lambda: load_tokenizer(tmp_path))
    assert text.startswith("refused: ") and "values, and may have" in text
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(2**40)  # as large as a disk, without its blocks
    assert "bytes, and may have" in within_bounds(lambda: load_tokenizer(tmp_path))


def changed_recipe(path: Path, **changes: Any) -> Path:
    """The checkpoint with keys of its model changed, and its digests put right."""
    values = yaml.safe_load((path / "recipe.yaml").read_text())
    values["model"] |= changes
    (path / "recipe.yaml").write_text(yaml.safe_dump(values))
    (path / MANIFEST).write_text(Manifest.read(path).with_files(path).model_dump_json())
    return path


RECIPES: dict[str, dict[str, Any]] = {
    "blocks": {"blocks": 10**9},
    "blocks that the schema allows": {"blocks": 1000},
    "many learners": {"blocks": 1000, "block": ["mlp"] * 5000},
    "width": {"width": 10**9},
    "hidden": {"block": [{"type": "mlp", "hidden": 10**12}]},
    "layers of a filter": {"block": [{"type": "hyena", "filter_layers": 10**9}]},
    "tiers": {"block": [{"type": "tiers", "tiers": 10**9}]},
    "a size that overflows": {"block": [{"type": "context_routed_moe", "channels": 10**12}]},
    "experts": {"block": [{"type": "experts", "experts": 10**9}]},
}


@pytest.mark.parametrize("case", RECIPES)
def test_a_recipe_that_its_weights_do_not_fit(tmp_path: Path, case: str) -> None:
    path = changed_recipe(write_checkpoint(tmp_path / "a"), **RECIPES[case])
    text = within_bounds(lambda: Checkpoint.open(path).model())
    assert text.startswith("refused: ") and "\n" not in text, text


def test_a_state_that_no_weight_stands_for(tmp_path: Path) -> None:
    """The slots of a tick are no weights: only the recipe says how many there are."""
    from synthe_core.model.language_model import LanguageModel
    from synthe_core.recipe.schema import Recipe
    from synthe_core.storage.checkpoint import save, weights

    slots = {"type": "slots", "slots": 64, "reads": 2, "writes": 2, "chunk": 4}
    recipe = Recipe.model_validate({"name": "x", "model": {"width": 32, "blocks": 1, "block": [slots]}})
    model = LanguageModel(recipe.model, 257)
    save(tmp_path / "a", recipe=recipe, vocab=257, tensors=weights(model), manifest=Manifest())
    Checkpoint.open(tmp_path / "a").model()
    path = changed_recipe(tmp_path / "a", block=[slots | {"chunk": 10**9}])
    assert "makes a state of" in within_bounds(lambda: Checkpoint.open(path).model().init_state(1))


PUBLISHED = {
    "num_hidden_layers": (10**9, "num_hidden_layers is 1000000000, and the model has"),
    "hidden_size": (10**9, ""),
    "intermediate_size": (10**9, ""),
    "vocab_size": (10**10, ""),
    "num_attention_heads": (10**9, "the longest side of its tensors is"),
    "rms_norm_eps": (10**400, "is a number of 1329 bits, and should be"),
    "head_dim": (10**9, ""),
}


@pytest.mark.parametrize("key", PUBLISHED)
def test_a_published_model_whose_config_does_not_fit_its_weights(tmp_path: Path, key: str) -> None:
    value, message = PUBLISHED[key]
    source = folder(tmp_path / "hf", llama(), dict(CONFIG) | {key: value})
    text = within_bounds(lambda: list(import_hf(source, out=tmp_path / "out")))
    assert text.startswith("refused: ") and message in text, text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", [*PUBLISHED, "max_position_embeddings"])
def test_a_published_model_that_is_served(tmp_path: Path, key: str) -> None:
    transformers = pytest.importorskip("transformers")
    from synthe_core.interop.huggingface import backend

    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings")
    config = transformers.GPT2Config(
        n_embd=16, n_layer=1, n_head=2, vocab_size=40, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    own = dict(zip(names, ("n_embd", "n_layer", "n_head", "vocab_size", "n_positions"), strict=True))
    if key not in own:
        pytest.skip("GPT-2 has no such key")
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {own[key]: 10**6}))
    text = within_bounds(lambda: backend.load(tmp_path))
    assert text.startswith("refused: "), text


def header(**entries: Any) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HEADERS: dict[str, tuple[bytes, str]] = {
    "longer than the file": ((2**60).to_bytes(8, "little") + b"{}", "header says it is"),
    "a product that overflows": (header(a=entry([2**32, 2**32], 0, 0)), "takes 0 bytes"),
    "a product that overflows to the size": (header(a=entry([2**61, 2, 4], 0, 16)) + bytes(16), "takes 16 bytes"),
    "zero times much": (header(a=entry([0, 2**61], 0, 4)) + bytes(4), "takes 4 bytes"),
    "overlap": (header(a=entry([2], 0, 8), b=entry([2], 4, 12)) + bytes(12), "overlap"),
    "a claim past the end": (header(a=entry([2**40], 0, 2**42)), "describes"),
    "negative": (header(a=entry([1], -4, 0)), "not a list of sizes"),
    "many dimensions": (header(a=entry([1] * 10_000, 0, 4)) + bytes(4), "takes 4 bytes"),
    "a huge number": (len(b'{"a":' + b"9" * 5000 + b"}").to_bytes(8, "little") + b'{"a":' + b"9" * 5000 + b"}", "JSON"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_of_tensors(tmp_path: Path, case: str) -> None:
    content, message = HEADERS[case]
    (tmp_path / "x.safetensors").write_bytes(content)
    text = within_bounds(lambda: TensorFile(tmp_path / "x.safetensors"))
    assert text.startswith("refused: ") and message in text and len(text) < 400


@pytest.mark.parametrize("piece", [b'"%d":[],', b'"%d":{"dtype":"I8","shape":[0],"data_offsets":[0,0]},'])
def test_a_header_of_millions_of_entries(tmp_path: Path, piece: bytes) -> None:
    content = bytearray(b"{")
    for number in range(1_500_000 if b"dtype" in piece else 5_000_000):
        content += piece % number
    content += b'"x":[]}'
    (tmp_path / "x.safetensors").write_bytes(len(content).to_bytes(8, "little") + content)
    text = within_bounds(lambda: TensorFile(tmp_path / "x.safetensors"))
    assert text.startswith("refused: ") and ("header says" in text or "values, and may have" in text)


@pytest.mark.parametrize("count", [10_001, 1_000_000])
def test_a_manifest_of_a_million_members(tmp_path: Path, count: int) -> None:
    """Each of them is a name of few letters: the file is small."""
    files = {f"m{number}": {"bytes": 0, "sha256": ""} for number in range(count)}
    manifest = {
        "format": "synapse",
        "version": "2.0",
        "name": "x",
        "base": {"model": "x", "carried": True},
        "files": files,
    }
    path = rebuild(tmp_path / "x.synapse", {"manifest.json": json.dumps(manifest).encode()}, rehash=False)
    for use in (lambda: list(verify(path)), lambda: list(inspect(path)), lambda: Checkpoint.open(path)):
        text = within_bounds(use)
        assert text.startswith("refused: ") and ("may list 10,000" in text or "may have 4194304" in text), text


def test_a_manifest_of_a_checkpoint_as_large_as_a_disk(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "a")
    with (path / MANIFEST).open("wb") as file:
        file.truncate(2**40)
    assert "bytes, and may have" in within_bounds(lambda: Checkpoint.open(path))


def test_the_bounds_do_not_refuse_what_is_whole(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "a")
    tensors = load_file(path / "model.safetensors")
    save_file(tensors | {f"extra{n}": torch.zeros(1) for n in range(30_000)}, tmp_path / "many.safetensors")
    assert len(TensorFile(tmp_path / "many.safetensors")) == len(tensors) + 30_000
    assert within_bounds(lambda: Checkpoint.open(path).model()) == "nothing was refused"
