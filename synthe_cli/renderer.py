"""Which renderer shows the events of a command."""

from __future__ import annotations

import os
import sys

from synthe_cli.console import JsonRenderer, PlainRenderer, Renderer, SilentRenderer

__all__ = ["SilentRenderer", "choose_renderer"]


def choose_renderer(as_json: bool) -> Renderer:
    """JSON lines with --json, the live display on a capable terminal, plain lines otherwise."""
    if as_json:
        return JsonRenderer()
    if sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown", None):
        from synthe_cli.live import LiveRenderer  # rich is imported only where it is seen

        return LiveRenderer()
    return PlainRenderer()
