"""A chart of a report as a picture of its own: `python -m docs.generate.figure REPORT.html OUT.svg [NUMBER]`.

`synthe bench report` draws its charts into report.html, where they take colours from the page. The picture carries the
same style sheet.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path


def picture(report: str, number: int = 0) -> str:
    """The chart of that number in the text of a report, with the report's style sheet in it."""
    style = re.search(r"<style>(.*?)</style>", report, flags=re.DOTALL)
    charts = re.findall(r"<svg.*?</svg>", report, flags=re.DOTALL)
    assert style is not None and charts, "not a report of `synthe bench report`"
    opening, rest = charts[number].split(">", 1)
    if "xmlns=" not in opening:
        opening += ' xmlns="http://www.w3.org/2000/svg"'
    page = "svg { background: var(--paper); font-family: system-ui, sans-serif }"
    return f"{opening}><style>{style[1]}{page}</style>{rest}\n"


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(picture(Path(sys.argv[1]).read_text(encoding="utf-8"), *map(int, sys.argv[3:])))
