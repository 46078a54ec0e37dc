"""`synthe hardware`: what was found, what was chosen, and why not the rest."""

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

TELLING = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "sve", "bf16", "i8mm")
"""The instruction sets that make a difference here, out of the hundred or so that a processor lists."""


@app.command(
    cls=Command,
    epilog="""\
synthe hardware                                   what trains here, at which precision, through which kernels
synthe hardware --json | jq .precision            the same for programs
synthe hardware --device cpu                      what the CPU would do, where there is a GPU
synthe hardware --tune tiny                       time this recipe's kernels and micro-batches, and remember""",
)
def hardware(
    tune: Annotated[
        str | None,
        typer.Option("--tune", metavar="RECIPE", help="Time kernels and micro-batches for this recipe; runs use them."),
    ] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what this machine has, the device and precision that are chosen, and the kernel that serves each operator.

    Measures matrix products and memory for about a second, and runs every learner once to see which operators it
    calls and which kernels would serve them. C kernels are compiled here if they were not before.
    """
    if tune is not None:
        _tune(tune, device, as_json)
        return

    import torch

    from synthe_core.hardware.kernel_survey import survey
    from synthe_core.hardware.placement import choose_device, choose_precision
    from synthe_core.hardware.probe import cache_dir, probe
    from synthe_core.hardware.rates import measure_copy, measure_matmul

    found = probe()
    where = choose_device(device or "auto", found)
    precision = choose_precision("auto", where.value, found)
    rates = {
        "matmul_float32_flops": measure_matmul(where.value, torch.float32),
        "matmul_bfloat16_flops": measure_matmul(where.value, torch.bfloat16),
        "copy_bytes": measure_copy(where.value),
    }
    surveyed = survey(where.value, precision.value)
    if as_json:
        facts = dataclasses.asdict(found) | {"features": sorted(found.features)}
        chosen = {"device": where._asdict(), "precision": precision._asdict(), "rates_per_second": rates}
        operators = [_operator(each) for each in surveyed]
        print(json.dumps({"found": facts, "cache": str(cache_dir()), **chosen, "operators": operators}))
        return
    print(_found(found, str(cache_dir())))
    print("\nchosen")
    print(f"  device        {where.value}: {where.reason}")
    print(f"  precision     {precision.value}: {precision.reason}; training times its own passes and may differ")
    wide, narrow = (rates[f"matmul_{kind}_flops"] / 1e9 for kind in ("float32", "bfloat16"))
    print(f"  arithmetic    {wide:,.0f} GFLOP/s in float32 and {narrow:,.0f} in bfloat16, of matrix products")
    print(f"  memory        {rates['copy_bytes'] / 1e9:.1f} GB/s, read and written in a copy")
    print("\noperators, and why the other kernels do not serve")
    print("\n".join(_explained(each) for each in surveyed))


def _tune(recipe: str, device: str | None, as_json: bool) -> None:
    """The kernels and micro-batch that are fastest for a recipe; what is kept is what `synthe train` looks for."""
    from synthe_core.recipe.schema import Recipe
    from synthe_core.training.tuning import tune_all

    changes = [f"runtime.device={device}"] if device else []
    loaded = Recipe.load(find_recipe(recipe), changes)
    with choose_renderer(as_json) as shown:
        for result in results(tune_all(loaded), shown.show):
            shown.result(result)


def _found(machine: Hardware, cache: str) -> str:
    telling = [name for name in TELLING if name in machine.features]
    rows = {
        "processor": f"{machine.processor}, {machine.cores} {'core' if machine.cores == 1 else 'cores'}",
        "instructions": ", ".join(telling) or "not told by this system",
        "caches": ", ".join(f"{name} {format_size(size)}" for name, size in machine.caches.items()) or "not told",
        "memory": f"{format_size(machine.memory)}, {format_size(machine.available)} of it free",
        "accelerator": "; ".join(map(_gpu, machine.gpus)) or "none that torch can use",
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


def _operator(each: Survey) -> dict[str, Any]:
    calls = {"training": each.training, "decoding": each.decoding}
    served = {
        phase: {"shape": call.shape, "kernel": call.kernel, "choices": [choice._asdict() for choice in call.choices]}
        for phase, call in calls.items()
        if call
    }
    return {"operator": each.op, "learners": each.learners, **served}


def _explained(each: Survey) -> str:
    if not each.learners:
        return f"  {each.op}  called by no learner directly"
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
        if not choice.chosen and choice.kernel != "reference":  # the definition itself, which always could
            lines.append(f"{'':28}{choice.kernel}: {choice.reason or 'could, and is ranked lower'}")
    return lines
