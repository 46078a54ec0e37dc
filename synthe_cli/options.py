"""Arguments and options that several commands share, and the lookup of recipes and checkpoints."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthe_cli.hub_models import complete_hub, find_model
from synthe_core.errors import InputError, closest
from synthe_core.units import parse_size

if TYPE_CHECKING:
    from synthe_core.inference.loaded_model import LoadedModel
    from synthe_core.inference.sampling_params import SamplingParams
    from synthe_core.inference.speculation.proposer import Speculation
    from synthe_core.inference.speculation.settings import SpeculationSettings


def complete_recipe(incomplete: str) -> list[str]:
    """Names of shipped recipes. The shell completes paths if none matches."""
    return [name for name in shipped_recipes() if name.startswith(incomplete)]


def complete_run(incomplete: str) -> list[str]:
    """The folders in runs/, and the models in the hub's cache."""
    runs = [str(path) for path in sorted(Path("runs").glob("*/")) if str(path).startswith(incomplete)]
    return runs if incomplete.startswith("runs") else [*runs, *complete_hub(incomplete)]


def complete_objective(incomplete: str) -> list[str]:
    from synthe_core.recipe.objective_table import OBJECTIVES

    return [name for name in OBJECTIVES if name.startswith(incomplete)]


def complete_weights(incomplete: str) -> list[str]:
    names = ("auto", "float32", "bfloat16", "as_stored", "int8", "int4", "int4_asymmetric")
    return [name for name in names if name.startswith(incomplete)]


def complete_speculate(incomplete: str) -> list[str]:
    return [name for name in ("ngram", "draft=", "early-exit") if name.startswith(incomplete)]


def complete_device(incomplete: str) -> list[str]:
    return [name for name in ("cpu", "cuda", "mps") if name.startswith(incomplete)]


RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe file, a run folder or the name of a shipped recipe.",
        autocompletion=complete_recipe,
    ),
]
ModelOrRecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE_OR_MODEL",
        help="A recipe file, the name of a shipped recipe, or any checkpoint: a path, or ORG/NAME of the hub.",
        autocompletion=complete_recipe,
    ),
]
CheckpointArgument = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        help="A run or checkpoint, .synapse or GGUF file, model folder, or ORG/NAME of the hub. - reads it from stdin.",
        autocompletion=complete_run,
    ),
]
DataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data", metavar="SOURCE", help="Use this text: a file, folder, glob, hub:NAME or stdlib. Repeatable."
    ),
]
LoraOption = Annotated[
    str | None,
    typer.Option(
        "--lora",
        metavar="KEY=VALUE,...",
        help="Train a LoRA adapter with these settings: rank, alpha, dropout, rslora, targets, quantize, double_quant.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="Override a key of the recipe, as train.lr=1e-3. Repeatable."
    ),
]
TemperatureOption = Annotated[
    float, typer.Option("--temperature", "-t", metavar="T", help="Sampling temperature. 0 is greedy.")
]
TopKOption = Annotated[
    int, typer.Option("--top-k", metavar="K", help="Sample from the K most likely tokens. 0 turns it off.")
]
TopPOption = Annotated[
    float,
    typer.Option(
        "--top-p", metavar="P", help="Sample from the smallest set of tokens whose probability is at least P."
    ),
]
MinPOption = Annotated[
    float, typer.Option("--min-p", metavar="P", help="Drop tokens less likely than P times the most likely one.")
]
RepetitionOption = Annotated[
    float,
    typer.Option("--repetition-penalty", metavar="R", help="Above 1, tokens that occurred before become less likely."),
]
AdapterOption = Annotated[
    Path | None,
    typer.Option(
        "--adapter", metavar="DIR", help="Apply this adapter: a run, a folder of PEFT, or ORG/NAME of the hub."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON lines instead of text.")]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="cpu, cuda or mps. Default: the fastest available.",
        autocompletion=complete_device,
    ),
]

WeightsOption = Annotated[
    str,
    typer.Option(
        "--weights",
        metavar="FORMAT",
        help="Format of the matrices in memory: float32, bfloat16, as_stored, int8, int4 or int4_asymmetric (on CPUs). "
        "CPUs multiply quantised ones by integers; CUDA multiplies float32 without TF32, and 16 bits in 16 bits. "
        "auto: as the file has them if it is quantised or has 16 bits, else float32.",
        autocompletion=complete_weights,
    ),
]


EvalWeightsOption = Annotated[
    str,
    typer.Option(
        "--weights",
        metavar="FORMAT",
        help="Format of the matrices in memory: float32, bfloat16, as_stored, int8, int4 or int4_asymmetric, to "
        "measure what it costs; auto: as the file has them.",
        autocompletion=complete_weights,
    ),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="Take at most this much memory, on the CPU: weights for which there is no room are read from the file in "
        "each pass. Default: all of them are loaded.",
    ),
]
SpeculateOption = Annotated[
    str | None,
    typer.Option(
        "--speculate",
        metavar="HOW",
        help="Draft several tokens and verify them in one pass; the text stays the same. ngram: what followed the same "
        "words before; draft=MODEL: a smaller model of the same tokenizer; early-exit[=BLOCKS]: the first blocks.",
        autocompletion=complete_speculate,
    ),
]


def spelled_option(key: str) -> str:
    """The option of a field: `--top-k` for `top_k`."""
    return f"--{key.replace('_', '-')}"


GenerationConfigOption = Annotated[
    str,
    typer.Option(
        "--generation-config",
        metavar="auto|none",
        help="auto: the model's generation_config.json sets what is not given. none: ignore that file.",
    ),
]


def uses_generation_config(text: str) -> bool:
    """Whether --generation-config is `auto`; InputError for a value that does not exist."""
    if text not in ("auto", "none"):
        raise InputError(f"--generation-config {text}: expected auto or none")
    return text == "auto"


def show_defaults(defaults: object) -> None:
    """Writes which defaults of generation_config.json are used, if there are any."""
    if shown := str(defaults):
        print(f"generation_config.json: {shown}", file=sys.stderr)


def memory_size(text: str | None) -> int | None:
    """The bytes of --memory. InputError for what is no size."""
    return None if text is None else size_option(text, "--memory", 1)


def device_option(text: str | None, memory: int | None) -> str:
    """The device of --device: by default the fastest one, the CPU with --memory."""
    return text or ("auto" if memory is None else "cpu")


def show_weights(model: LoadedModel) -> None:
    """Writes in which format a model's matrices are, where they are quantised; of one within --memory what is where,
    and how fast that is."""
    for name, summary in (("weights", model.weights_summary), ("memory", model.memory_summary)):
        if summary:
            print(f"{name}: {summary}", file=sys.stderr)


def show_speed(model: LoadedModel) -> None:
    """Writes how fast a model within --memory was, which it has said before."""
    if speed := model.measured_speed:
        print(f"memory: {speed}", file=sys.stderr)


def speculation(text: str | None) -> SpeculationSettings | None:
    """The settings of --speculate. InputError for what it cannot be."""
    if text is None:
        return None
    from synthe_core.inference.speculation.settings import SpeculationSettings

    return SpeculationSettings.parse(text)


def speculate_with(models: Iterable[LoadedModel], settings: SpeculationSettings | None, device: str) -> None:
    """From now on the models' texts are drafted as --speculate says; how that differs from the text without is written
    to stderr."""
    if settings is None:
        return
    from functools import cache

    from synthe_core.inference.speculation.settings import speculate
    from synthe_core.interop.load import load_model

    load = cache(lambda name: load_model(find_model(name), device=device, weights="auto"))
    for model in models:
        if difference := speculate(model, settings, load):
            print(f"speculation: {model.name}: {difference}", file=sys.stderr)


def show_speculation(speculation: Speculation | None) -> None:
    """Writes how many drafted tokens were accepted."""
    if speculation is not None:
        counts = f"{speculation.accepted_tokens} of {speculation.drafted_tokens} drafted tokens accepted"
        print(f"speculation: {speculation.summary}: {counts}", file=sys.stderr)


def with_defaults(context: typer.Context, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The values of options, with the model's defaults for those that are not given on the command line."""
    sources = {key: context.get_parameter_source(key) for key in values}
    not_given = {key for key, source in sources.items() if source is None or source.name.startswith("DEFAULT")}
    return {**values, **{key: value for key, value in defaults.items() if key in not_given}}


def sampled(values: Mapping[str, Any], spelled: Callable[[str], str] = spelled_option) -> SamplingParams:
    """The sampling parameters of the options above. Raises InputError that names the invalid option."""
    from pydantic import ValidationError

    from synthe_core.inference.sampling_params import SamplingParams

    try:
        return SamplingParams.model_validate(values)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        message = f"{fault['msg'][:1].lower()}{fault['msg'][1:]}, not {fault['input']}"
        raise InputError(f"{spelled(str(fault['loc'][0]))}: {message}") from None


def overrides(data: list[str] | None, assignments: list[str] | None) -> list[str]:
    """--data and --set as one list of `key=value` for `Recipe.load`. --set comes last and wins."""
    sources = [f"data.sources={json.dumps(data)}"] if data else []
    return sources + list(assignments or [])


def lora(text: str) -> str:
    """--lora as one `key=value` for `Recipe.load`. In `rank=8,targets=delta,mlp` a key has one value or several."""
    settings: dict[str, list[str]] = {}
    for piece in text.split(","):
        key, equals, value = piece.rpartition("=")
        if equals:
            settings.setdefault(key.strip(), []).append(value.strip())
        elif settings:
            settings[list(settings)[-1]].append(value.strip())
        else:
            raise InputError(f"--lora {text}: expected key=value", "for example --lora rank=16,targets=delta,mlp")
    listed = {key: values if key == "targets" else ",".join(values) for key, values in settings.items()}
    return f"train.lora={json.dumps(listed)}"


def find_recipe(text: str) -> Path:
    """The path of a RECIPE argument: an existing path, else the shipped recipe of that name (`baselines/mamba`)."""
    path = Path(text).expanduser()
    if path.exists():
        return path
    shipped = shipped_recipes()
    if path.suffix in (".yaml", ".yml") and text not in shipped and not path.is_absolute():
        text = text.removeprefix("recipes/").removesuffix(path.suffix)
    if text in shipped:
        return shipped[text]
    beside = {
        entry.name: entry for entry in path.parent.glob("*") if entry.is_dir() or entry.suffix in (".yaml", ".yml")
    }
    choices = beside | {name.rpartition("/")[2]: shipped[name] for name in shipped} | shipped
    near = closest(text, shipped) or closest(path.name, choices)
    hint = f"did you mean '{choices[near]}'?" if near else "a recipe is a .yaml file, or one of " + ", ".join(shipped)
    raise InputError(f"no such recipe: '{path}'", hint)


def find_recipe_or_model(text: str) -> Path:
    """The path of a RECIPE_OR_MODEL argument: what `find_recipe` finds, else a model of the hub, which is fetched."""
    from synthe_core.storage.hub.model_id import hub_id

    groups = {name.partition("/")[0] for name in shipped_recipes() if "/" in name}
    is_model = text not in shipped_recipes() and text.partition("/")[0] not in groups and hub_id(text) is not None
    return find_model(text) if is_model else find_recipe(text)


def shipped_recipes() -> dict[str, Path]:
    """The recipes that came with synthe and those in ./recipes, by name; those of the working folder win.

    Recipes of merges have another schema, and are left out.
    """
    recipes: dict[str, Path] = {}
    for root in (recipes_folder(), Path("recipes")):
        recipes |= {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.yaml"))}
    return {name: path for name, path in recipes.items() if not name.startswith("merge/")}


def recipes_folder() -> Path:
    """The recipes inside the installed package, see build_recipes.py; in a checkout, the folder beside it."""
    from importlib.resources import files

    package = Path(str(files("synthe_cli")))
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def find_checkpoint(text: str) -> Path:
    """The path of a CHECKPOINT argument: a path, or a model of the hub, which is fetched.

    `-` is the last non-empty line of stdin, which other commands print.
    """
    if text != "-":
        return find_model(text)
    if sys.stdin.isatty():
        raise InputError(
            "- reads the checkpoint's path from stdin, but stdin is a terminal", "pipe another command into this one"
        )
    lines = [line.strip() for line in sys.stdin.read().split("\n")]
    path = next((line for line in reversed(lines) if line), None)
    if path is None:
        raise InputError("no checkpoint path on stdin", "the command before the pipe printed none: did it fail?")
    if path.startswith("{"):  # the last event of a command with --json
        path = _path_of(path)
    return find_model(path)


def _path_of(line: str) -> str:
    try:
        return str(json.loads(line)["path"])
    except (ValueError, KeyError, RecursionError):
        raise InputError("the JSON on stdin has no path", "the command before the pipe did not finish") from None


def size_option(text: str, option: str, least: int = 0) -> int:
    """Bytes of a size typed for `option`, such as 512MiB or 2GB."""
    try:
        size = parse_size(text)
    except ValueError as error:
        raise InputError(f"{option}: {error}", "kB, MB, GB are powers of 1000; KiB, MiB, GiB of 1024") from None
    if size < least:
        raise InputError(f"{option} {text}: at least {least} byte{'s' if least != 1 else ''}")
    return size
