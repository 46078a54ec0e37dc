"""`python -m docs.generate`: writes docs/reference/ and removes pages that no longer belong there."""

from __future__ import annotations

from pathlib import Path

from docs.generate import pages

REFERENCE = Path(__file__).parents[1] / "reference"


def main() -> None:
    """Writes every page and prints the paths of those that changed."""
    texts = pages()
    for path in sorted(REFERENCE.rglob("*")):
        if path.is_file() and path.relative_to(REFERENCE).as_posix() not in texts:
            path.unlink()
            print(f"removed {path.relative_to(REFERENCE.parent)}")
    for name, text in texts.items():
        path = REFERENCE / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(REFERENCE.parent)}")


if __name__ == "__main__":
    main()
