"""Ids of the hub as arguments of every command, and `synthe pull` and `synthe models`."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from synthe_cli.options import complete_run
from synthe_core.data.tokenizers import open_tokenizer
from synthe_core.evaluation.opened_model import open_model
from synthe_core.interop.huggingface.remote_code import check_runs_without_code
from synthe_core.interop.load import load_model
from synthe_core.storage.checkpoint import Checkpoint
from tests.hub_standin import Hub, hub_on_this_machine

ID = "acme/tiny"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a byte-level tokenizer, as transformers saves it."""
    import tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("published") / "tiny"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=256, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(path)
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({each: i for i, each in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> Iterator[Hub]:
    with hub_on_this_machine(monkeypatch, tmp_path) as server:
        server.put(ID, contents(folder))
        (tmp_path / "a.txt").write_text("the sea and the sky " * 40)
        yield server


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["generate", ID, "-p", "ab", "-n", "4", "--temperature", "0", "--json"], '"prompt": "ab"'),
        (["eval", "perplexity", ID, "--data", "a.txt", "-n", "128", "--context", "64", "--json"], "bits_per_byte"),
        (["introspect", ID, "--text", "abc", "--json"], "attention"),
        (["recipe", "show", ID], "imported from acme/tiny@"),
        (["profile-vram", ID, "--serve", "--json"], '"serving"'),
        (["import", "hf", ID, "--out", "imported"], "imported"),
        (["export", "gguf", ID, "--out", "tiny.gguf"], "tiny.gguf"),
        (["export", "hf", ID, "--out", "exported"], "exported"),
        (["pack", ID, "-o", "tiny.synapse"], "tiny.synapse"),
        (["merge", "linear", ID, "acme/other", "--out", "merged"], "merged"),
        (["merge", "diff", ID, "acme/other", "--json"], '"total"'),
        (["merge", "run", "m.yaml", "--out", "merged"], "merged"),
        (["merge", "extract-lora", ID, "acme/other", "--rank", "2", "--out", "lora"], "lora"),
        (["pack", "diff", ID, "acme/other", "--json"], "tensors"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_every_command_takes_an_id(hub: Hub, synthe: Callable, tmp_path: Path, folder, arguments, expected) -> None:  # type: ignore
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, tmp_path / "changed")
    weights = {name: tensor + 0.01 for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, tmp_path / "changed" / "model.safetensors", {"format": "pt"})
    hub.put("acme/other", contents(tmp_path / "changed"))
    (tmp_path / "m.yaml").write_text(f"merge_method: linear\nmodels: [{{model: {ID}}}, {{model: acme/other}}]\n")
    done = synthe(*arguments)
    assert done.exit_code == 0, done.stderr
    assert expected in done.stdout
    assert "pull acme/tiny" in done.stderr or "--json" in arguments
    if "--json" in arguments:
        assert all(json.loads(line) for line in done.stdout.splitlines()), "stdout has the results"


def test_training_from_an_id_records_the_commit(hub: Hub, synthe: Callable, tmp_path: Path) -> None:
    commit = hub.find(ID, "main")[0]  # type: ignore[index]
    done = synthe("train", "--init", ID, "--data", "a.txt", "--lora", "rank=2", "--out", "lora", "--set",
                  "train.budget=1steps", "--set", "train.batch=1", "--set", "data.sequence=16", "--set",
                  "runtime.device=cpu")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    checkpoint = Checkpoint.open(tmp_path / "lora")
    assert checkpoint.manifest.parents == [f"{ID}@{commit}"]
    assert checkpoint.manifest.base is not None and checkpoint.manifest.base.path == f"{ID}@{commit}"
    config = json.loads((checkpoint.path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == ID and config["revision"] == commit
    assert checkpoint.recipe.data.tokenizer.type == f"hub:{ID}@{commit}"
    alone = synthe("generate", "lora", "-p", "a", "-n", "3", "--temperature", "0")
    assert alone.exit_code == 0, alone.stderr
    hub.put("acme/lora", {name: (checkpoint.path / name).read_bytes() for name in
                          ("adapter_config.json", "adapter_model.safetensors")})  # fmt: skip
    fetched = synthe("generate", "acme/lora", "-p", "a", "-n", "3", "--temperature", "0")
    assert fetched.exit_code == 0 and fetched.stdout == alone.stdout, fetched.stderr
    over = synthe("generate", ID, "--adapter", "acme/lora", "-p", "a", "-n", "3", "--temperature", "0")
    assert over.exit_code == 0 and over.stdout == alone.stdout, over.stderr


def test_records_name_the_commit(hub: Hub, synthe: Callable, tmp_path: Path) -> None:
    source = f"{ID}@{hub.find(ID, 'main')[0]}"  # type: ignore[index]
    assert synthe("import", "hf", ID).exit_code == 0
    imported = Checkpoint.open(tmp_path / "runs" / "tiny")
    recipe = Checkpoint.open(Path(ID)).recipe
    assert recipe.data.tokenizer.type == f"hub:{source}"
    assert synthe("models", "rm", ID).exit_code == 0
    hub.requests.clear()
    assert open_tokenizer(recipe.data.tokenizer.type).encode("ab") == imported.tokenizer().encode("ab")
    assert not any("safetensors" in each for each in hub.requests), "a tokenizer is fetched without weights"
    assert imported.manifest.parents == [source] and imported.recipe.description.endswith(source)
    assert synthe("pack", ID, "-o", "tiny.synapse").exit_code == 0
    assert Checkpoint.open(tmp_path / "tiny.synapse").manifest.parents == [source]
    assert synthe("merge", "linear", ID, "runs/tiny", "--out", "merged").exit_code == 2, "two kinds are no merge"


def test_an_evaluation_names_the_commit(hub: Hub, synthe: Callable, tmp_path: Path) -> None:
    source = f"{ID}@{hub.find(ID, 'main')[0]}"  # type: ignore[index]
    (tmp_path / "rows.jsonl").write_text('{"text": "the sea and the sky"}\n')
    (tmp_path / "own.yaml").write_text(
        "task: own\ndataset_path: json\ndataset_kwargs: {data_files: rows.jsonl}\ntest_split: train\n"
        "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        "metric_list: [{metric: bits_per_byte}]\n"
    )
    done = synthe("eval", "lm", ID, "--tasks", "own.yaml", "--output", "results")
    assert done.exit_code == 0, done.stderr
    (file,) = (tmp_path / "results").rglob("results_*.json")
    assert file.parent.name == source.replace("/", "__") and source in file.read_text()


def test_a_gguf_file_of_the_hub(hub: Hub, synthe: Callable, tmp_path: Path) -> None:
    for kind in ("f16", "q8_0"):
        assert synthe("export", "gguf", ID, "--out", f"tiny-{kind}.gguf", "--quantize", kind).exit_code == 0
    hub.put("acme/tiny-GGUF", {path.name: path.read_bytes() for path in tmp_path.glob("*.gguf")})
    local = synthe("generate", tmp_path / "tiny-q8_0.gguf", "-p", "ab", "-n", "4", "--temperature", "0")
    for name in ("acme/tiny-GGUF:Q8_0", "acme/tiny-GGUF/tiny-q8_0.gguf"):
        fetched = synthe("generate", name, "-p", "ab", "-n", "4", "--temperature", "0")
        assert fetched.exit_code == 0 and fetched.stdout == local.stdout, fetched.stderr
    done = synthe("import", "gguf", "acme/tiny-GGUF:F16")
    assert done.exit_code == 0 and done.stdout.strip() == "runs/tiny-f16", done.stderr


def test_served_and_chat_models_have_the_name_of_the_repository(hub: Hub, synthe: Callable) -> None:
    from synthe_cli.commands.serve_run import model_paths

    assert list(model_paths([ID])) == ["tiny"]
    assert list(model_paths([f"mine={ID}"])) == ["mine"]
    done = synthe("chat", ID, "--json", "-n", "2", stdin="hello\n")
    assert done.exit_code == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1


def test_pull_and_models(hub: Hub, synthe: Callable, tmp_path: Path) -> None:
    commit = hub.find(ID, "main")[0]  # type: ignore[index]
    done = synthe("pull", ID)
    assert done.exit_code == 0, done.stderr
    path = Path(done.stdout.strip())
    assert path.name == commit and (path / "model.safetensors").is_file() and tmp_path / "hub" in path.parents
    assert "pull acme/tiny  100%" in done.stderr and commit[:12] in done.stderr
    lines = [json.loads(line) for line in synthe("pull", ID, "--json").stdout.splitlines()]
    assert lines[-1]["event"] == "result" and lines[-1]["path"] == str(path) and lines[-1]["values"]["commit"] == commit
    table = synthe("models").stdout.splitlines()
    assert table[0].split() == ["name", "kind", "commit", "used", "size"]
    assert table[1].split()[:3] == [ID, "safetensors", commit[:12]]
    (line,) = synthe("models", "--json").stdout.splitlines()
    assert [each["name"] for each in json.loads(line)["values"]["models"]] == [ID]
    gone = synthe("models", "rm", ID)
    assert gone.exit_code == 0 and re.fullmatch(r"removed acme/tiny: \S+ KiB are free\n", gone.stdout), gone.stdout
    assert not path.exists() and synthe("models").stdout.startswith("no models in ")
    again = synthe("models", "rm", ID)
    assert again.exit_code == 2 and "unknown model in the cache" in again.stderr


def test_a_name_that_is_neither_is_one_line(hub: Hub, synthe: Callable, tmp_path: Path) -> None:
    (tmp_path / "org" / "near").mkdir(parents=True)
    for arguments, message, hint in (
        (["generate", "acme/none"], "'acme/none' is not on the hub", "there is no local path acme/none either"),
        (["generate", "org/neer"], "no such checkpoint: org/neer", "did you mean org/near? Or for a model of the hub"),
        (["generate", "runs/none"], "no such checkpoint: runs/none", "train one"),
        (["generate", "none"], "no such checkpoint: none", "train one"),
        (["chat", "acme/none"], "'acme/none' is not on the hub", "local path"),
        (["serve", "acme/none"], "'acme/none' is not on the hub", "local path"),
        (["recipe", "show", "baselines/mambo"], "no such recipe", "did you mean"),
        (["train", "acme/none"], "no such recipe: 'acme/none'", "synthe train --init acme/none"),
        (["train", "baselines/mambo"], "no such recipe", "did you mean"),
        (["generate", "hub:x"], "'hub:x' is no model of the hub", "hub:ORG/NAME"),
        (["pull", "tiny"], "'tiny' is no model of the hub", "ORG/NAME"),
    ):
        done = synthe(*arguments)
        assert done.exit_code == 2 and message in done.stderr and hint in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) <= 2 and done.stdout == ""


def test_a_model_with_code_of_its_own_is_refused_before_its_weights(
    hub: Hub, synthe: Callable, folder: Path, tmp_path: Path
) -> None:
    config = json.loads((folder / "config.json").read_text())
    own = {"architectures": ["MyForCausalLM"], "auto_map": {"AutoModelForCausalLM": "modeling_my.MyForCausalLM"}}
    hub.put("acme/code", contents(folder) | {"config.json": json.dumps(config | own).encode()})
    done = synthe("generate", "acme/code")
    assert done.exit_code == 2 and len(re.findall("^error:", done.stderr, re.M)) == 1
    assert "modeling_my.MyForCausalLM" in done.stderr and "synthe merge" in done.stderr
    assert not any("model.safetensors" in each for each in hub.requests)
    (tmp_path / "here").mkdir()
    for name, content in hub.find("acme/code", "main")[1].items():  # type: ignore[index]
        (tmp_path / "here" / name).write_bytes(content)
    local = synthe("generate", "here")
    assert local.exit_code == 2 and "modeling_my.MyForCausalLM" in local.stderr
    merged = synthe("merge", "linear", "acme/code", "--out", "merged")
    assert merged.exit_code == 0, merged.stderr
    check_runs_without_code("x", config | own | {"architectures": ["LlamaForCausalLM"]})  # known without the code
    check_runs_without_code("x", {"auto_map": {"AutoTokenizer": "t.T"}, "architectures": ["MyForCausalLM"]})


def test_a_damaged_shard_is_one_line(hub: Hub, synthe: Callable, folder: Path) -> None:
    files = contents(folder)
    hub.put("acme/cut", files | {"model.safetensors": files["model.safetensors"][:2000]})
    done = synthe("generate", "acme/cut")
    assert done.exit_code == 2 and "is damaged" in done.stderr and "Traceback" not in done.stderr
    assert "synthe models rm acme/cut; synthe pull acme/cut" in done.stderr


def test_the_shell_is_offered_what_is_in_the_cache(hub: Hub, synthe: Callable, tmp_path: Path) -> None:
    (tmp_path / "runs" / "acme").mkdir(parents=True)
    assert complete_run("acme") == [] and complete_run("runs") == ["runs/acme"]
    assert synthe("pull", ID).exit_code == 0
    assert complete_run("acme") == [ID] and complete_run("runs") == ["runs/acme"]


def test_a_library_takes_ids(hub: Hub, tmp_path: Path) -> None:
    path = Path(ID)
    model = load_model(path)
    assert model.name == "tiny" and tmp_path / "hub" in model.path.parents
    assert open_model(path, "cpu").path == Checkpoint.open(path).path == model.path
