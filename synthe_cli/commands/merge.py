"""`synthe merge`: merge models and adapters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthe_cli.commands.eval_lm import show
from synthe_cli.commands.merge_show import differences, evaluation, methods, parameters
from synthe_cli.help import SETTINGS, Command, Group
from synthe_cli.options import JsonOption, size_option
from synthe_cli.renderer import choose_renderer
from synthe_cli.signals import stop_on_signal
from synthe_core.errors import InputError, unknown
from synthe_core.events import Event, Result, results

if TYPE_CHECKING:
    from synthe_core.merging.config import MergeSpec

ABOUT = "Merge models or adapters, with TIES and related methods (synthe merge METHOD MODELS...)."
ON_STOP = "nothing is written"


class MergeGroup(Group):
    """Every merge method of the table is a command too."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        names = self.list_commands(ctx)
        if args and args[0] not in names and not args[0].startswith("-"):
            from synthe_core.merging.methods import METHODS

            if args[0] not in METHODS:
                raise unknown("merge method", args[0], [*METHODS, *(name for name in names if name.islower())])
            command: Any = self.get_command(ctx, "METHOD")
            if "--help" in args or "-h" in args:
                command.help = f"\b\n{parameters(args[0])}\n\n{command.help}"  # \b: as it is written
            return args[0], command, args[1:]
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=MergeGroup, help=ABOUT, **SETTINGS)


@app.callback(help=ABOUT)
def group() -> None: ...


OutOption = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="DIR", help="Folder of the result. Default: a new one in runs/.")
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Tensors merged concurrently. Default: all cores. The result does not depend on it."
    ),
]
EvalOption = Annotated[
    list[str] | None,
    typer.Option(
        "--eval",
        metavar="TEXTS",
        help="Evaluate the result and its parents on texts (bits per byte) or tasks of `eval list`. Repeatable.",
    ),
]
LimitOption = Annotated[
    float | None, typer.Option("--limit", metavar="N", help="Maximum number of questions of each task of --eval.")
]
HashesOption = Annotated[
    bool, typer.Option("--hashes/--no-hashes", help="Compute and check the SHA-256 of the parents.")
]
ShardOption = Annotated[str, typer.Option(metavar="SIZE", help="Maximum file size of the result.")]


@app.command(
    "METHOD",
    cls=Command,
    short_help="Merge models with a method, such as ties or linear.",
    epilog="""\
synthe merge linear runs/a runs/b runs/c                       their average
synthe merge ties runs/base runs/a runs/b --density 0.2        the first is the base
synthe merge ties --base runs/base runs/a runs/b --density 0.2,0.5 --lambda 0.8 --weights 1,0.5
synthe merge slerp runs/a runs/b --t 0.3 --out merged
synthe merge ties adapter-a adapter-b --rank 16                the result is an adapter: B A merged and factored again
synthe merge ties --base runs/base adapter-a adapter-b         the result is a model: adapters merged into the base
synthe merge ties runs/base runs/a runs/b --eval a.txt,b.txt   compare it with its parents on texts
synthe merge ties runs/base runs/a runs/b --eval wikitext,gsm8k --limit 100    or on tasks
synthe merge linear org/model-a org/model-b --dtype bfloat16""",
    context_settings={**SETTINGS["context_settings"], "allow_extra_args": True, "ignore_unknown_options": True},
)
def method(
    ctx: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL", help="Runs, Hugging Face folders, adapters or hub ids."),
    ],
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="Base of the models. Default: the first model.")
    ] = None,
    out: OutOption = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="TYPE", help="float32, bfloat16 or float16. Default: the base's.")
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="FORM",
            help="Result of merging adapters: adapter (merge B A), factors (merge A and B) or model.",
        ),
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, metavar="R", help="Rank of a merged adapter.")] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="WHICH", help="base, union or a path, if the models have different tokenizers."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Random seed of methods that sample.")] = 0,
    evaluate: EvalOption = None,
    limit: LimitOption = None,
    threads: ThreadsOption = None,
    shard: ShardOption = "5GB",
    hashes: HashesOption = True,
    as_json: JsonOption = False,
) -> None:
    """Merge models into one and print the path of the result.

    If a method needs a base, it is the first model unless --base names one. Parameters of the method are options:
    --density 0.2 for all models, --density 0.2,0.5 for each. Only a few tensors are in memory at a time.
    """
    from synthe_core.merging.config import spec_of
    from synthe_core.merging.inputs import fetch_inputs
    from synthe_core.merging.method import Method

    chosen = Method(str(ctx.info_name))
    named, arguments = _split(ctx, chosen, models)
    with choose_renderer(as_json) as shown:
        for event in fetch_inputs([base, *named]):
            shown.show(event)
    spec = spec_of(
        chosen, named, arguments, base=base, dtype=dtype, form=form, rank=rank, tokenizer=tokenizer, seed=seed
    )
    _merge(spec, out, threads, shard, hashes, evaluate, limit, as_json)


@app.command(
    cls=Command,
    short_help="Merge as a recipe specifies (mergekit's YAML).",
    epilog="""\
synthe merge run recipes/merge/ties.yaml
synthe merge run my.yaml --out merged --eval held-out.txt
synthe merge run merged/merge.yaml               reproduce a result from its own recipe""",
)
def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file: merge_method, models or slices ...")],
    out: OutOption = None,
    evaluate: EvalOption = None,
    limit: LimitOption = None,
    threads: ThreadsOption = None,
    shard: ShardOption = "5GB",
    hashes: HashesOption = True,
    as_json: JsonOption = False,
) -> None:
    """Merge as a recipe specifies, and print the path of the result.

    The keys are mergekit's: merge_method, base_model, models or slices, parameters (a number, a gradient over the
    layers, or values by filter), dtype, out_dtype and tokenizer; and name, seed, as and rank.
    """
    from synthe_core.merging.config import load

    _merge(load(recipe), out, threads, shard, hashes, evaluate, limit, as_json)


@app.command(
    "list",
    cls=Command,
    short_help="List the methods, their parameters and papers.",
    epilog="synthe merge list\nsynthe merge list --json | jq -r .values.methods[].name",
)
def list_methods(as_json: JsonOption = False) -> None:
    """List the methods with their parameters, defaults and papers."""
    with choose_renderer(as_json) as shown:
        listed = methods()
        if as_json:
            shown.result(Result({"methods": listed}))
        else:
            print("\n\n".join(parameters(each["name"]) for each in listed))


@app.command(
    cls=Command,
    short_help="Compare two models tensor by tensor.",
    epilog="""\
synthe merge diff runs/a runs/b                        distance, cosine and signs of their weights
synthe merge diff runs/a runs/b --base runs/base       compare their differences from the base
synthe merge diff runs/a runs/b --all --json > diff.json""",
)
def diff(
    one: Annotated[str, typer.Argument(metavar="MODEL")],
    other: Annotated[str, typer.Argument(metavar="MODEL")],
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="Compare the differences from this model.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Show every tensor, not only the twenty that differ most.")
    ] = False,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two models tensor by tensor: distance, cosine, and share of equal signs."""
    from synthe_core.merging.difference import diff as verb

    with choose_renderer(as_json) as shown:
        for result in results(verb(one, other, base=base, threads=threads), shown.show):
            if as_json:
                shown.result(result)
            else:
                shown.close()
                print(differences(result.values, every, base is not None))


@app.command(
    "extract-lora",
    cls=Command,
    short_help="Extract the difference of two models as a LoRA adapter.",
    epilog="""\
synthe merge extract-lora runs/base runs/tuned --rank 16
synthe merge extract-lora org/base ./tuned --rank 64 --target q_proj,v_proj --out adapter
synthe merge extract-lora runs/base runs/tuned --rank 16 --with-rest      include norms and biases unchanged""",
)
def extract_lora(
    base: Annotated[str, typer.Argument(metavar="BASE")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED")],
    rank: Annotated[int, typer.Option("--rank", "-r", metavar="R", help="Rank of the adapter.")] = 16,
    target: Annotated[
        list[str] | None, typer.Option(metavar="PART", help="Only matrices whose name contains this. Repeatable.")
    ] = None,
    rest: Annotated[
        bool, typer.Option("--with-rest", help="Include changed tensors that are not matrices in full.")
    ] = False,
    out: OutOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the LoRA adapter (PEFT's format) that best approximates TUNED - BASE, and print its path."""
    from synthe_core.merging.extract import extract_lora as verb

    with choose_renderer(as_json) as shown, stop_on_signal(ON_STOP) as stop:
        targets = tuple(_listed(target))
        events = verb(base, tuned, rank=rank, out=out, targets=targets, rest=rest, threads=threads, stop=stop)
        for result in results(events, shown.show):
            shown.result(result)


def _merge(
    spec: MergeSpec,
    out: Path | None,
    threads: int | None,
    shard: str,
    hashes: bool,
    evaluate: list[str] | None,
    questions: float | None,
    as_json: bool,
) -> None:
    from synthe_core.merging.merge import merge, merge_and_compare

    limit, names = size_option(shard, "--shard", least=1000), _listed(evaluate)
    with choose_renderer(as_json) as shown, stop_on_signal(ON_STOP) as stop:
        options: dict[str, Any] = {"out": out, "threads": threads, "shard_bytes": limit, "hashes": hashes, "stop": stop}
        events: Iterator[Event] = (
            merge_and_compare(spec, names, questions, **options) if names else merge(spec, **options)
        )
        for result in results(events, shown.show):
            if names and not as_json:
                shown.close()
                if "bits_per_byte" in result.values:
                    print(evaluation(result.values))
                if "models" in result.values:
                    show(result.values["models"])  # type: ignore[arg-type]
                result = Result(path=result.path)
            shown.result(result)


def _split(ctx: typer.Context, chosen: Any, words: list[str]) -> tuple[list[str], dict[str, Any]]:
    """The models and method parameters in the unparsed arguments: `a b --density 0.2 --normalize=false`."""
    options = [option for each in ctx.command.params for option in each.opts if option.startswith("--")]
    known = [f"--{name.replace('_', '-')}" for name in chosen.parameters]
    named: list[str] = []
    arguments: dict[str, Any] = {}
    rest = [*words, *ctx.args]
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            named.append(word)
            continue
        key, equals, value = word[2:].partition("=")
        name = {"weights": "weight"}.get(key, key).replace("-", "_")
        if name not in chosen.parameters:
            if having := chosen.others_with(name):
                raise InputError(f"{chosen.name} has no --{key}", f"methods that have it: {', '.join(having)}")
            raise unknown("option", f"--{key}", [*known, *options])
        if not equals:
            if not rest:
                raise InputError(f"{word} needs a value")
            value = rest.pop(0)
        arguments[name] = value
    return named, arguments


def _listed(values: list[str] | None) -> list[str]:
    return [part for value in values or [] for part in value.split(",") if part]
