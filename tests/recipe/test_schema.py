import json

import pytest
import yaml

from synthe_cli.options import overrides
from synthe_core.budget import Budget
from synthe_core.errors import InputError
from synthe_core.recipe.schema import Recipe

GOOD = """\
name: t
model:
  width: 32
  blocks: 1
  block:
    - {type: delta, heads: 2}
    - mlp
train:
  lr: 1e-3
"""


def load(tmp_path, text, *overrides):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return Recipe.load(path, overrides)


def fault(tmp_path, text, *overrides):
    with pytest.raises(InputError) as error:
        load(tmp_path, text, *overrides)
    return error.value.message.replace(str(tmp_path) + "/", ""), error.value.hint or ""


def test_values_are_read_and_the_rest_has_defaults(tmp_path):
    recipe = load(tmp_path, GOOD, "train.budget=20Mtokens", "model.block.0.heads=4", "train.clip=null")
    assert recipe.train.lr == 1e-3 and recipe.train.clip is None
    assert recipe.train.budget == Budget(2e7, "tokens")
    assert recipe.model.block[0].heads == 4


def test_a_written_recipe_is_read_back_unchanged(tmp_path):
    recipe = load(tmp_path, GOOD, "train.stages=[{until: 0.5, sequence: 64}]", "runtime.log=[tensorboard]")
    again = load(tmp_path, recipe.to_yaml())
    assert again == recipe and again.digest() == recipe.digest()


@pytest.mark.parametrize(
    "old,new,message,hint",
    [
        ("width: 32", "widht: 32", "r.yaml:3:3: unknown key 'model.widht'", "did you mean 'width'?"),
        ("heads: 2", "haeds: 2", "r.yaml:6:21: unknown key 'model.block.0.haeds'", "did you mean 'heads'?"),
        ("type: delta", "type: detla", "r.yaml:6:8: model.block.0: unknown learner 'detla'", "did you mean 'delta'?"),
        ("heads: 2", "heads: two", "r.yaml:6:21: model.block.0.heads: input should be a valid integer", ""),
        ("lr: 1e-3", "lr: -1", "r.yaml:9:3: train.lr: input should be greater than 0", ""),
        ("lr: 1e-3", "budget: 3 moons", "r.yaml:9:3: train.budget: '3 moons' is not a budget", ""),
        ("train:", "  bloks: 1\ntrain:", "unknown key 'model.bloks'", "did you mean 'blocks'?"),
        ("name: t", "name: a/b", "r.yaml:1:1: name: string should match pattern", ""),
    ],
)
def test_an_error_names_its_place_and_a_suggestion(tmp_path, old, new, message, hint):
    error, suggestion = fault(tmp_path, GOOD.replace(old, new))
    assert message in error
    assert hint in suggestion


LONG = "a" * 100_000


@pytest.mark.parametrize(
    "change",
    [
        {"objective": LONG},
        {"objective": {"type": LONG}},
        {"train": {"optimizer": LONG}},
        {"train": {"budget": LONG}},
        {"train": {LONG: 1, LONG + "b": 1}},
        {"model": {"width": 8, "blocks": 1, "block": [{"type": LONG}]}},
        {"model": {"width": 8, "blocks": 1, "block": [{"type": "mlp", LONG: 1}]}},
        {"runtime": {"device": LONG}},
        {"data": {"sources": "stdlib", "tokenizer": {LONG: 1}}},
        {LONG: {LONG: 1}},
    ],
)
def test_an_error_shows_the_beginning_of_what_is_long(tmp_path, change):
    message, hint = fault(tmp_path, json.dumps(yaml.safe_load(GOOD) | change))
    assert len(message) < 2000 and len(hint) < 2000


def test_several_errors_are_reported_at_once(tmp_path):
    errors, _ = fault(tmp_path, GOOD.replace("width: 32", "width: 0").replace("lr: 1e-3", "lr: 0"))
    assert len(errors.splitlines()) == 2


@pytest.mark.parametrize("text", ["model: [1, 2", "a: 1\n  b: 2", "model: {width: 3\n"])
def test_malformed_yaml_names_line_and_column(tmp_path, text):
    error, _ = fault(tmp_path, text)
    assert "r.yaml:" in error and error.split("r.yaml:")[1][0].isdigit()


@pytest.mark.parametrize("content", [b"", b"just words", b"- 1\n", b"\xff\xfe\x00"])
def test_invalid_content_is_refused(tmp_path, content):
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(InputError):
        Recipe.load(tmp_path / "r.yaml")


def test_a_missing_file_names_its_neighbour(tmp_path):
    load(tmp_path, GOOD)
    with pytest.raises(InputError) as error:
        Recipe.load(tmp_path / "rr.yaml")
    assert "r.yaml" in (error.value.hint or "")


@pytest.mark.parametrize(
    "assignment,message",
    [
        ("train.lr", "expected key=value"),
        ("train.lr=[", "is not a YAML value"),
        ("train.lr=fast", "--set train.lr: train.lr: input should be a valid number"),
        ("train.lr.x=1", "'train.lr' is a single value"),
        ("model.block.7.heads=1", "'7' is no index of a list of 2"),
        ("train.bugdet=3m", "--set train.bugdet: unknown key 'train.bugdet'"),
    ],
)
def test_an_error_of_an_override_names_it(tmp_path, assignment, message):
    assert message in fault(tmp_path, GOOD, assignment)[0]


def test_another_learner_takes_a_place_with_one_override(tmp_path):
    resolved = load(tmp_path, GOOD).to_yaml()
    assert "conv: 4" in resolved
    swapped = load(tmp_path, resolved, "model.block.0.type=attention")
    assert swapped.model.block[0].type == "attention" and swapped.model.block[0].heads == 2
    assert "did you mean 'attention'" in fault(tmp_path, resolved, "model.block.0.type=atention")[1]


def test_a_hint_names_keys_of_the_learner_that_is_meant(tmp_path):
    assert "timescales" not in fault(tmp_path, GOOD.replace("heads: 2", "timescale: 2"))[1]
    assert fault(tmp_path, GOOD.replace("heads: 2", "xyz: 2"))[1].startswith("known: type, heads")


@pytest.mark.parametrize(
    "text,message",
    [
        (GOOD + "name: again\n", "r.yaml:10:1: the key 'name' is given twice"),
        ("a: &x [*x]\n", "r.yaml:1:4: an alias refers to what it is part of"),
        ("a: &x {b: *x}\n", "r.yaml:1:4: an alias refers to what it is part of"),
    ],
)
def test_ambiguous_yaml_is_refused(tmp_path, text, message):
    assert message in fault(tmp_path, text)[0]


@pytest.mark.parametrize(
    "value,message",
    [
        ("batch: on", "train.batch: a number is expected, not true"),
        ("batch: no", "train.batch: a number is expected, not false"),
        ("micro_batch: yes", "train.micro_batch: a number is expected, not true"),
        ("lr: off", "train.lr: a number is expected, not false"),
        ("ema: true", "train.ema: a number is expected, not true"),
        ("lr: .inf", "train.lr: input should be a finite number"),
        ("lr: .nan", "train.lr: input should be a finite number"),
        ("batch: 0100", "0100 is another number in YAML"),
        ("batch: 1:30", "1:30 is another number in YAML"),
        ("budget: 1:30", "1:30 is another number in YAML"),
    ],
)
def test_values_that_yaml_reads_as_others(tmp_path, value, message):
    text = "model: {width: 32, blocks: 1, block: [mlp]}\n"
    assert "r.yaml:2:" in (error := fault(tmp_path, f"{text}train: {{{value}}}\n")[0]) and message in error
    key, _, plain = value.partition(": ")
    assert message in fault(tmp_path, text, f"train.{key}={plain}")[0]


def test_values_that_are_what_they_look_like(tmp_path):
    text = "model: {width: 32, blocks: 1, block: [mlp]}\ntrain: {lr: 1e-3, batch: 0x10, carry: on}\nname: '0100'\n"
    read = load(tmp_path, text)
    assert (read.train.lr, read.train.batch, read.train.carry, read.name) == (1e-3, 16, True, "0100")
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert Recipe.load(tmp_path / "r.yaml") == read


def test_aliases_of_aliases_end(tmp_path):
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    assert "more than 100,000 values" in fault(tmp_path, "\n".join(lines))[0]
    assert (
        "more than 100,000 values"
        in fault(tmp_path, "model: {width: 1, blocks: 1, block: [mlp]}", "name={" + ", ".join(lines) + "}")[0]
    )
    assert "larger than 4 MiB" in fault(tmp_path, "#" * 2**22 + "\n")[0]


NAMES = [
    "2024",
    "a b#c",
    "a #b",
    "[x].txt",
    "a: b",
    "%x",
    "@x",
    "*y",
    "&z",
    "日本",
    "😀",
    "a=b",
    "+p",
    "{q}",
    "'q'",
    "yes",
]


@pytest.mark.parametrize("name", [*NAMES, "~t", "-", "- a", "!k", "null", "0100"])
def test_a_path_that_exists_is_taken_as_it_is_written(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    text = "model: {width: 32, blocks: 1, block: [mlp]}\ndata: {sources: [x, y]}\n"
    for assignment in (f"data.sources={name}", *overrides([name], None)):
        assert [each.source for each in load(tmp_path, text, assignment).data.sources] == [name]
    assert load(tmp_path, text, f"data.sources.1={name}").data.sources[1].source == name
    assert load(tmp_path, text, f"data.tokenizer={name}").data.tokenizer.type == name
    if name not in ("2024", "0100"):
        assert load(tmp_path, text, f"data.validation={name}").data.validation == name


def test_patterns_need_no_quotes(tmp_path):
    text = "model: {width: 32, blocks: 1, block: [mlp]}\n"
    for pattern in ("*.txt", "**/*.txt", "[ab]*.txt", "@x/*", "%x"):
        assert load(tmp_path, text, f"data.sources={pattern}").data.sources[0].source == pattern
        assert load(tmp_path, text, f"data.validation={pattern}").data.validation == pattern
    assert "this is not UTF-8" in fault(tmp_path, text, "data.sources=\udce9.txt")[0]


def test_stages_must_divide_the_sequence_and_rise(tmp_path):
    assert "does not divide" in fault(tmp_path, GOOD, "train.stages=[{until: 0.5, sequence: 100}]")[0]
    stages = "train.stages=[{until: 0.5, sequence: 64}, {until: 0.2, sequence: 128}]"
    assert "must be larger" in fault(tmp_path, GOOD, stages)[0]


@pytest.mark.parametrize(
    "text,amount,unit",
    [
        ("20Mtokens", 2e7, "tokens"),
        ("1.5G tokens", 1.5e9, "tokens"),
        ("500steps", 500, "steps"),
        ("1 step", 1, "steps"),
        ("3epochs", 3, "epochs"),
        ("0.5 epoch", 0.5, "epochs"),
        ("90s", 90, "seconds"),
        ("3m", 180, "seconds"),
        ("1.5h", 5400, "seconds"),
        ("2 days", 172800, "seconds"),
    ],
)
def test_budgets_are_read_and_written(text, amount, unit):
    budget = Budget.parse(text)
    assert budget == (amount, unit)
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize("text", ["", "3", "tokens", "-3m", "0s", "3 parsecs", "5Mm", "m3"])
def test_invalid_budgets_are_refused(text):
    with pytest.raises(ValueError, match="budget"):
        Budget.parse(text)


PARTS = """\
name: t
model:
  width: 32
  blocks: 2
  depth: {min: 1}
  block:
    - kalman
    - multiscale_memory
    - {type: attention, heads: 2, when: {signal: confidence, below: 0.5}}
train:
  stages:
    - until: 0.5
      without: [multiscale_memory.tier3, depth]
"""
TIER = "multiscale_memory"
ENTRY = "r.yaml:13:17: train.stages.0.without.0"


@pytest.mark.parametrize(
    "without,message,hint",
    [
        (f"{TIER}.teir3", f"{ENTRY}: unknown part of the model '{TIER}.teir3'", f"'{TIER}.tier3'"),
        (f"{TIER}.tier4", f"{ENTRY}: unknown part of the model '{TIER}.tier4'", f"{TIER}.tier"),
        ("delta", f"{ENTRY}: unknown part of the model 'delta'", ""),
        (f"{TIER}.tier1", f"{ENTRY}: unknown part of the model '{TIER}.tier1'", f"'{TIER}.tier"),
        (
            f"{TIER}.tier2",
            f"r.yaml:13:7: train.stages.0.without: {TIER}.tier3 builds on {TIER}.tier2",
            f"leave out {TIER}.tier3 too",
        ),
        (
            "multiscale_memory, kalman",
            "r.yaml:13:7: train.stages.0.without: attention reads the signal 'confidence', and what publishes it",
            "leave out attention too",
        ),
    ],
)
def test_a_stage_leaves_out_existing_parts_that_no_other_part_needs(tmp_path, without, message, hint):
    load(tmp_path, PARTS)
    load(tmp_path, PARTS, "train.stages.0.without=[kalman]", "train.stages.0.sequence=256")
    error, suggestion = fault(tmp_path, PARTS.replace("multiscale_memory.tier3, depth", without))
    assert message in error and len(error.splitlines()) == 1
    assert hint in suggestion


def test_a_confidence_head_needs_its_signals_in_every_stage(tmp_path):
    settings = "model.confidence={}", "train.stages.0.without=[multiscale_memory]"
    assert "the confidence head reads the signal 'conflict'" in fault(tmp_path, PARTS, *settings)[0]
    load(tmp_path, PARTS, settings[0], "train.stages.0.without=[multiscale_memory, confidence]")
