"""Where the project lies, and the folder of shared texts and models beside it, which may be absent."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
SHARED = ROOT.parent / "shared"
