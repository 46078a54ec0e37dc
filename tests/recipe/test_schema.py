import pytest

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
