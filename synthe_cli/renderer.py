"""Which renderer shows the events of a command."""

from __future__ import annotations

import os
import sys

from synthe_cli.console import JsonRenderer, PlainRenderer, Renderer


def choose_renderer(as_json: bool) -> Renderer:
    """JSON lines when asked for, the live display on a terminal that can move its cursor, plain lines elsewhere."""
    if as_json:
        return JsonRenderer()
    if sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown", None):
        from synthe_cli.live import LiveRenderer  # rich is imported only where it is seen

        return LiveRenderer()
    return PlainRenderer()
