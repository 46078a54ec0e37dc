"""`python -m synthe_core.swarm.learning TEAM`: learns what there is to learn, without a word. Its figures are in the
swarm's ledger, and how far it is in `learning.json`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from threading import Event as Stop

from synthe_core.errors import SyntheError
from synthe_core.hardware.mkl import request_strict_mode
from synthe_core.swarm.learning.background import lower_priority


def main(path: str) -> int:
    """Returns the exit code. SIGTERM ends it after saving."""
    lower_priority()
    request_strict_mode()
    stop = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    from synthe_core.swarm.folder import SwarmFolder
    from synthe_core.swarm.learning.learn import learn

    try:
        for _ in learn(SwarmFolder(Path(path)), stop=stop):
            pass
    except SyntheError as error:
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
