"""The wheel and the sdist are whole: installed elsewhere, they train, measure and serve from an empty folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import urllib.request
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.paths import RECIPES, ROOT
from tests.processes import run_program, start

PACKED = ("pyproject.toml", "README.md", "LICENSE", "synthe_cli", "synthe_core", "recipes")
OFFLINE = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "-q"]
SDIST = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
SMALL = ("train.budget=2steps", "train.batch=2", "data.sequence=32", "data.tokenizer=bytes")
pytestmark = pytest.mark.timeout(1200)


def pip(*arguments: object) -> None:
    done = run_program([sys.executable, "-m", "pip", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a build reads, apart from the checkout, which a build would write to."""
    folder = tmp_path_factory.mktemp("source")
    for name in PACKED:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, folder / name)
    return folder


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    done = run_program([sys.executable, "-c", SDIST, folder], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(source: Path, sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", *OFFLINE, "-w", folder, source)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and its script, as `pip` and `uv tool install` make one; dependencies are ours."""
    folder = tmp_path_factory.mktemp("tool") / "venv"
    venv.create(folder, with_pip=False)
    packages = next(folder.glob("lib/python*/site-packages"))
    python = folder / "bin" / "python"
    pip("--python", python, "install", *OFFLINE, wheel)
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "synthe"


@pytest.fixture
def synthe(installed: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the installed program in an empty folder."""

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(installed), *map(str, arguments)]
        done = run_program(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done

    return call


def environment(folder: Path) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return inherited | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def recipes_of(archive: Path) -> set[str]:
    """The recipes in a wheel, relative to their folder."""
    names = zipfile.ZipFile(archive).namelist()
    return {name.removeprefix("synthe_cli/recipes/") for name in names if name.startswith("synthe_cli/recipes/")}


def contents_of(archive: Path) -> dict[str, int]:
    """Each file with the checksum of its contents."""
    return {entry.filename: entry.CRC for entry in zipfile.ZipFile(archive).infolist()}


SHIPPED = {path.relative_to(RECIPES).as_posix() for path in RECIPES.rglob("*.yaml")}


def test_the_wheel_holds_what_the_packages_read(wheel: Path) -> None:
    assert recipes_of(wheel) == SHIPPED
    names = set(zipfile.ZipFile(wheel).namelist())
    read = (".c", ".h", ".html", ".css", ".js", ".svg", ".yaml", ".py")
    packages = [path for package in ("synthe_cli", "synthe_core") for path in (ROOT / package).rglob("*")]
    assert not {str(path.relative_to(ROOT)) for path in packages if path.suffix in read} - names


def test_a_wheel_of_the_sdist_is_the_same(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    pip("wheel", *OFFLINE, "-w", tmp_path, sdist)
    built = next(tmp_path.glob("*.whl"))
    assert contents_of(built) == contents_of(wheel)


def test_installed_it_trains_measures_and_serves(
    synthe: Callable[..., subprocess.CompletedProcess[str]], installed: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("The river ran past the mill and under the bridge. " * 200)
    trained = synthe("train", "tiny", "--data", "text.txt", *(word for each in SMALL for word in ("--set", each)))
    assert (tmp_path / trained.stdout.strip()).is_dir()
    theirs = "from transformers import pipeline as p; print(p('text-generation', 'runs/tiny')('the', max_new_tokens=2))"
    python = [str(installed.with_name("python")), "-c", theirs]
    loaded = run_program(python, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True)
    assert "generated_text" in loaded.stdout, loaded.stderr
    shown = synthe("bench", "mqar", "--layer", "delta", "--steps", "1", "--width", "16", "--json")
    assert '"event"' in shown.stdout
    server = start(
        [str(installed), "serve", "runs/tiny", "--port", "0", "--json"],
        cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout is not None and server.stderr is not None
    line = server.stdout.readline()
    assert line, server.stderr.read()
    with urllib.request.urlopen(f"{json.loads(line)['url']}/health", timeout=60) as answer:
        assert answer.status == 200
    with urllib.request.urlopen(json.loads(line)["url"], timeout=60) as answer:
        assert b"<html" in answer.read()
    server.terminate()
    server.communicate(timeout=60)
    assert server.returncode == 0


def test_the_checkout_reads_its_own_folder() -> None:
    from synthe_cli.options import recipes_folder

    assert recipes_folder() == RECIPES
