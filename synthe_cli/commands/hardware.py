"""`synthe hardware`: the hardware, the choices made for it, and their reasons."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthe_cli.help import SETTINGS, Command
from synthe_cli.options import DeviceOption, JsonOption, find_recipe
from synthe_cli.renderer import choose_renderer
from synthe_core.events import results
from synthe_core.units import format_size

if TYPE_CHECKING:
    from synthe_core.hardware.kernel_survey import Served, Survey
    from synthe_core.hardware.probe import Hardware

app = typer.Typer(**SETTINGS)

SHOWN_FEATURES = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "sve",
    "bf16",
    "i8mm",
)
"""The instruction sets that the kernels use."""


@app.command(
    cls=Command,
    epilog="""\
synthe hardware                                   device, precision and kernels of this machine
synthe hardware --json | jq .precision            the same as JSON
synthe hardware --device cpu                      the choices for the CPU
synthe hardware --tune tiny                       tune kernels and micro-batches for this recipe""",
)
def hardware(
    tune: Annotated[
        str | None,
        typer.Option(
            "--tune",
            metavar="RECIPE",
            help="Tune kernels and micro-batches for this recipe, and save the result for its runs.",
        ),
    ] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the hardware, the chosen device and precision, and the kernel of each operator.

    Measures matrix products and memory bandwidth for about a second, and runs every learner once to record which
    operators and kernels it uses. Compiles the C kernels if needed.
    """
    if tune is not None:
        _tune(tune, device, as_json)
        return

    import torch

    from synthe_core.hardware.kernel_survey import survey
    from synthe_core.hardware.placement import choose_device, choose_precision
    from synthe_core.hardware.probe import cache_dir, probe
    from synthe_core.hardware.rates import measure_copy, measure_matmul

    machine = probe()
    where = choose_device(device or "auto", machine)
    precision = choose_precision("auto", where.value, machine)
    rates = {
        "matmul_float32_flops": measure_matmul(where.value, torch.float32),
        "matmul_bfloat16_flops": measure_matmul(where.value, torch.bfloat16),
        "copy_bytes": measure_copy(where.value),
    }
    surveyed = survey(where.value, precision.value)
    if as_json:
        facts = dataclasses.asdict(machine) | {"features": sorted(machine.features)}
        chosen = {"device": where._asdict(), "precision": precision._asdict(), "rates_per_second": rates}
        operators = [_operator_values(each) for each in surveyed]
        print(json.dumps({"found": facts, "cache": str(cache_dir()), **chosen, "operators": operators}))
        return
    print(_machine(machine, str(cache_dir())))
    print("\nchosen")
    print(f"  device        {where.value}: {where.reason}")
    print(f"  precision     {precision.value}: {precision.reason}; training measures its own passes and may differ")
    wide, narrow = (rates[f"matmul_{kind}_flops"] / 1e9 for kind in ("float32", "bfloat16"))
    print(f"  arithmetic    {wide:,.0f} GFLOP/s in float32 and {narrow:,.0f} in bfloat16 (matrix products)")
    print(f"  bandwidth     {rates['copy_bytes'] / 1e9:.1f} GB/s of memory (copy, read and write)")
    print("\noperators, their kernels, and why other kernels are not used")
    print("\n".join(_operator_lines(each) for each in surveyed))


def _tune(recipe: str, device: str | None, as_json: bool) -> None:
    """Tunes kernels and micro-batches for a recipe and saves the fastest, which `synthe train` then uses."""
    from synthe_core.recipe.schema import Recipe
    from synthe_core.training.tuning import tune_all

    changes = [f"runtime.device={device}"] if device else []
    loaded = Recipe.load(find_recipe(recipe), changes)
    with choose_renderer(as_json) as shown:
        for result in results(tune_all(loaded), shown.show):
            shown.result(result)


def _machine(machine: Hardware, cache: str) -> str:
    features = [name for name in SHOWN_FEATURES if name in machine.features]
    rows = {
        "processor": f"{machine.processor}, {machine.cores} {'core' if machine.cores == 1 else 'cores'}",
        "instructions": ", ".join(features) or "unknown",
        "caches": ", ".join(f"{name} {format_size(size)}" for name, size in machine.caches.items()) or "unknown",
        "memory": f"{format_size(machine.memory)}, {format_size(machine.available)} available",
        "accelerator": "; ".join(map(_gpu, machine.gpus)) or "none usable by torch",
        "compiler": machine.compiler or "none (C kernels cannot be built; install gcc or clang)",
        "system": machine.system,
        "libraries": ", ".join(f"{name} {version}" for name, version in machine.libraries.items()),
        "cache": cache,
    }
    return "\n".join(["found", *(f"  {name:<13} {value}" for name, value in rows.items())])


def _gpu(gpu: Any) -> str:
    capability = f", compute capability {gpu.capability[0]}.{gpu.capability[1]}" if gpu.capability != (0, 0) else ""
    driver = f", driver {gpu.driver}" if gpu.driver else ""
    return f"{gpu.name}, {format_size(gpu.memory)}{capability}{driver}"


def _operator_values(each: Survey) -> dict[str, Any]:
    calls = {"training": each.training, "decoding": each.decoding}
    kernels = {
        phase: {"shape": call.shape, "kernel": call.kernel, "choices": [choice._asdict() for choice in call.choices]}
        for phase, call in calls.items()
        if call
    }
    return {"operator": each.op, "learners": each.learners, **kernels}


def _operator_lines(each: Survey) -> str:
    if not each.learners:
        return f"  {each.op}  not called by a learner directly"
    lines = [f"  {each.op}  for {', '.join(each.learners)}"]
    if each.training:
        lines += _phase("training", each.training)
    if each.decoding:
        lines += _phase("decoding", each.decoding)
    return "\n".join(lines)


def _phase(name: str, call: Served) -> list[str]:
    shape = "x".join(map(str, call.shape))
    lines = [f"    {name:<9} {shape:<13} {call.kernel}"]
    for choice in call.choices:
        if not choice.chosen and choice.kernel != "reference":  # the reference always can
            lines.append(f"{'':28}{choice.kernel}: {choice.reason or 'available, ranked lower'}")
    return lines
