"""Compiles kernels for an architecture and prints what each needs.

    SYNTHE_AOT=90 python -m tests.gpu.aot.table               all of ours
    SYNTHE_AOT=120 python -m tests.gpu.aot.table kalman_filter fla:kda --json

The largest variant of each kernel is shown. Exits with 1 where one does not compile, or needs more shared memory than a
block has.
"""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict

from tests.gpu.aot import compiler

COMPILED = compiler.install()

from tests.gpu.aot.calls import FLA, OURS  # noqa: E402  # kernels are imported behind the pretended driver


def rows(names: list[str]) -> list[tuple[str, compiler.Usage]]:
    """Of every kernel that the calls launch, the variant with the most registers: (call, usage)."""
    largest: dict[tuple[str, str], compiler.Usage] = {}
    for name in names:
        COMPILED.clear()
        (FLA[name.removeprefix("fla:")] if name.startswith("fla:") else OURS[name])()
        for variant, kernel in COMPILED.items():
            used = compiler.usage(variant.split()[0], kernel)
            before = largest.get((name, used.kernel))
            if before is None or (used.spills, used.registers) > (before.spills, before.registers):
                largest[name, used.kernel] = used
    return [(name, used) for (name, _), used in largest.items()]


def main() -> None:
    warnings.simplefilter("ignore")
    arguments = [each for each in sys.argv[1:] if each != "--json"]
    table = rows(arguments or list(OURS))
    if "--json" in sys.argv:
        print(json.dumps([asdict(used) | {"call": name, "architecture": compiler.CAPABILITY} for name, used in table]))
    else:
        print(
            f"| sm_{compiler.CAPABILITY}: kernel | registers | spills | shared memory | warps |\n|---|---|---|---|---|"
        )
        for _, used in table:
            print(f"| `{used.kernel}` | {used.registers} | {used.spills} | {used.shared} | {used.warps} |")
    too_much = [used.kernel for _, used in table if used.shared > compiler.CARD.shared]
    if too_much:
        sys.exit(f"more shared memory than a block of sm_{compiler.CAPABILITY} has: {', '.join(too_much)}")


if __name__ == "__main__":
    main()
