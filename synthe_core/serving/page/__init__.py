"""The dashboard: one page of plain HTML, CSS and ES modules, served as it stands here; nothing is built or fetched."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
INDEX = "index.html"

FILES: dict[str, str] = {
    name: f"{TYPES[Path(name).suffix]}; charset=utf-8"
    for name in (
        INDEX,
        "style.css",
        "icon.svg",
        "main.js",
        "api.js",
        "chat.js",
        "conversations.js",
        "models.js",
        "pointing.js",
        "settings.js",
        "strips.js",
        "theme.js",
        "tokens.js",
        "vitals.js",
        "words.js",
    )
}
"""name: media type. `/` is INDEX, and every file stands under /page/; no other file is to be served from here."""


def read(name: str) -> bytes:
    """What the file holds; KeyError for a name that is not among FILES."""
    if name not in FILES:
        raise KeyError(name)
    return (FOLDER / name).read_bytes()
