"""The build step that puts recipes/ into the wheel and the sdist. pyproject.toml names it; nothing else imports it."""

from __future__ import annotations

from pathlib import Path

from setuptools.command.build_py import build_py


class BuildPy(build_py):
    """`build_py` that also copies recipes/**/*.yaml to synthe_cli/recipes."""

    def _recipes(self) -> dict[str, str]:
        """Source of every recipe, by the path that it has in the build."""
        if self.editable_mode:  # a checkout is read where it stands
            return {}
        target = Path(self.build_lib, "synthe_cli")
        return {str(target / path): str(path) for path in sorted(Path("recipes").rglob("*.yaml"))}

    def run(self) -> None:
        super().run()
        for target, source in self._recipes().items():
            self.mkpath(str(Path(target).parent))
            self.copy_file(source, target)

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *self._recipes().values()]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *self._recipes()]
