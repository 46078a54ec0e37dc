"""`synthe bench speed`: operators, training steps, and decoding beside other programs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synthe_cli import figures
from synthe_cli.options import (
    DeviceOption,
    JsonOption,
    WeightsOption,
    complete_run,
    find_checkpoint,
    find_recipe,
)
from synthe_cli.renderer import choose_renderer
from synthe_core.errors import InputError, unknown
from synthe_core.events import Measurement

if TYPE_CHECKING:
    from synthe_core.events import Event

EXAMPLES = """\
synthe bench speed                                       everything; takes minutes
synthe bench speed --part ops --op delta                 the delta rule against other implementations
synthe bench speed --part learners --learner mamba       time at 512 to 8,192 tokens, and state size
synthe bench speed --part training --recipe tiny --recipe baselines/mamba
synthe bench speed --part training --json > speed.jsonl  tiny and 60m-flat against transformers of equal size
synthe bench speed model.gguf                            decoding beside llama.cpp and transformers, where installed
synthe bench speed --part decoding --against llama.cpp --llama-server ~/llama.cpp/build/bin/llama-server model.gguf"""

PARTS = ("ops", "learners", "training", "decoding", "published")
GROWTH = (512, 1024, 2048, 4096, 8192)
PAIRS = (("tiny", "baselines/transformer"), ("60m-flat", "baselines/transformer-60m"))
IMPLEMENTATIONS = "transformers,fla,sdpa,reference"
PROGRAMS = "llama.cpp,transformers"


def speed(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A GGUF file, checkpoint or model folder that is decoded beside other programs.",
            autocompletion=complete_run,
        ),
    ] = None,
    part: Annotated[
        list[str] | None, typer.Option(help="ops, learners, training, decoding or published. Repeatable.")
    ] = None,
    op: Annotated[list[str] | None, typer.Option(help="delta, momentum or kalman. Repeatable.")] = None,
    learner: Annotated[list[str] | None, typer.Option(help="Learner for the part `learners`. Repeatable.")] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RECIPE", help="Compare these recipes with the first, in training and decoding. Repeatable."
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help=f"With MODEL, other programs: {PROGRAMS}. Otherwise other implementations of the operators: "
            f"{IMPLEMENTATIONS}. Default: all of them.",
        ),
    ] = None,
    rows: Annotated[str, typer.Option(metavar="N,N", help="With MODEL: numbers of texts at once.")] = "1,8,32",
    tokens: Annotated[int, typer.Option(metavar="N", help="With MODEL: tokens of each text.", min=16)] = 48,
    weights: WeightsOption = "auto",
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="With MODEL: CPU threads of each program. Default: torch's.")
    ] = None,
    llama_server: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="With MODEL: llama.cpp's llama-server. Default: the one on the PATH."),
    ] = None,
    turns: Annotated[int, typer.Option(min=1, help="Timed runs per candidate, in alternation.")] = 7,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time operators, training steps and decoding. Candidates alternate in one process, and medians are reported.

    A ratio is a candidate's time divided by the first candidate's, computed per run, so that drift of the machine's
    speed cancels. Each case reports its shapes and throughput. With MODEL, greedy decoding on the CPU is compared: the
    engine, our server, llama.cpp's server, and generate of transformers, each on the same prompts and threads.
    """
    if model is not None:
        if set(part or ["decoding"]) != {"decoding"} or op or learner or recipe or (device or "cpu") != "cpu":
            raise InputError(
                "MODEL is for decoding beside other programs, on the CPU",
                "leave out --op, --learner, --recipe and --device, and any --part but decoding",
            )
        _decoding(model, against or PROGRAMS, rows, tokens, weights, threads, llama_server, turns, as_json)
        return
    with choose_renderer(as_json) as renderer:
        peers = tuple((against or IMPLEMENTATIONS).split(","))
        if "llama.cpp" in peers:
            raise InputError("--against llama.cpp needs a model", "synthe bench speed --against llama.cpp model.gguf")
        for event in _measure(part or list(PARTS), op, learner, recipe, peers, turns, device or "auto"):
            renderer.show(event)


def _decoding(
    model: str, against: str, rows: str, tokens: int, weights: str, threads: int | None, llama_server: Path | None,
    turns: int, as_json: bool,
) -> None:  # fmt: skip
    """Shows a comparison of programs: progress and settings as they come, and a table."""
    from synthe_core.benchmarks.decoding.compare import DecodingComparison, compare_decoding

    options = DecodingComparison(
        find_checkpoint(model), tuple(against.split(",")), _numbers(rows), turns, tokens, weights, threads, llama_server
    )
    measured: list[Measurement] = []
    with choose_renderer(as_json) as renderer:
        try:
            for event in compare_decoding(options):
                if as_json or not isinstance(event, Measurement):
                    renderer.show(event)
                else:
                    measured.append(event)
        finally:  # after an interruption too: the cases that were measured
            renderer.close()
            if measured:
                print(_table(measured))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(each) for each in text.split(","))
    except ValueError:
        raise InputError(f"--rows {text}: not numbers", "for example --rows 1,8,32") from None


def _table(measured: list[Measurement]) -> str:
    """A line for each case and candidate; a ratio below 1 is faster than the engine."""
    rows, case = [], ""
    for each in measured:
        values = each.values
        ms, rate, ratio, low, high = (
            float(values[key] or 0.0) for key in ("ms", "tokens_per_s", "ratio", "least_ratio", "greatest_ratio")
        )
        name = each.case if each.case != case else ""
        case = each.case
        cells = [f"{ms:.3g}" if ms < 100 else f"{ms:,.0f}", f"{rate:,.4g}", f"{ratio:.2f}", f"{low:.2f} to {high:.2f}"]
        rows.append([name, str(values["candidate"]), *cells])
    return figures.table(["", "", "ms", "tokens/s", "time / ours", "least and greatest"], rows, left=2)


def _measure(
    parts: list[str],
    ops: list[str] | None,
    chosen: list[str] | None,
    recipes: list[str] | None,
    against: tuple[str, ...],
    turns: int,
    device: str,
) -> Iterator[Event]:
    from synthe_core.benchmarks import learners, models, operators
    from synthe_core.hardware.placement import choose_device
    from synthe_core.hardware.probe import probe
    from synthe_core.recipe.schema import Recipe

    for part in parts:
        if part not in PARTS:
            raise unknown("part", part, PARTS)
    operators.check(ops or (), against)
    device = choose_device(device, probe()).value
    if "published" in parts:  # first, while the process uses little memory
        sixty = find_recipe("60m-flat")
        both = {f"60m-flat, {name}": Recipe.load(sixty, [f"train.optimizer={name}"]) for name in ("adamw", "muon")}
        yield from models.published_shapes(both, turns, device)
    if "ops" in parts:
        for name in ops or list(operators.CASES):
            yield from operators.measure(name, against, device, turns)
    if "learners" in parts:
        yield from learners.growth(GROWTH, 256, turns, device, chosen)
    groups = [tuple(recipes)] if recipes else PAIRS
    pairs = [{name: Recipe.load(find_recipe(name)) for name in group} for group in groups]
    for pair in pairs:
        if "training" in parts:
            yield from models.training(pair, (512, 2048), 4096, turns, device)
        if "decoding" in parts:
            # The large transformer is left out: its prefill of 32,768 tokens takes many minutes on a CPU.
            small_enough = {name: recipe for name, recipe in pair.items() if name != PAIRS[1][1]}
            yield from models.decoding(small_enough, (1024, 32768), turns, device)
