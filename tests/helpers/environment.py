"""An environment as `make demo` makes it: the project's own dependencies without its extras, and what is built from it.

Installing them anew costs three minutes and 4 GB. Instead the files of exactly the distributions that pyproject.toml
leads to are linked out of the environment that runs the tests: what is in none of them cannot be imported.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("flows", "tasks", "model")
SHIPPED_BESIDE = ("pyproject.toml", "README.md", "LICENSE")


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and how a program is run in it."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        return next((self.folder / "lib").glob("python3.*/site-packages"))

    def variables(self, **more: str) -> dict[str, str]:
        """What a shell has after `source bin/activate`, without a path that leads back to the checkout."""
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        return {**kept, "PATH": f"{self.folder / 'bin'}{os.pathsep}{kept.get('PATH', os.defpath)}", **more}


def make_environment(folder: Path, names: Iterable[str]) -> Environment:
    """A virtual environment in which these distributions are installed, by links into the one that runs this."""
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    made = Environment(folder)
    whole = _ownership(installed())
    _link(whole, frozenset(names), Path(sysconfig.get_paths()["purelib"]), made.site_packages)
    return made


def installed() -> dict[str, Distribution]:
    """What is installed here, by its canonical name."""
    return {canonicalize_name(found.metadata["Name"]): found for found in distributions()}


def own_dependencies() -> frozenset[str]:
    """Every distribution that the project's dependencies lead to, the project's extras aside.

    Raises:
        AssertionError: one of them is not installed here.
    """
    here = installed()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [Requirement(text) for text in project["dependencies"]]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        wanted = waiting.pop()
        key = (canonicalize_name(wanted.name), frozenset(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        assert key[0] in here, f"{wanted} is not installed: make the environment anew"
        further = [Requirement(text) for text in here[key[0]].requires or []]
        extras = ("", *wanted.extras)
        waiting += [r for r in further if not r.marker or any(r.marker.evaluate({"extra": extra}) for extra in extras)]
    return frozenset(name for name, _ in seen)


@dataclass
class _Entry:
    """A file or folder of site-packages, and which distributions have something in it."""

    owners: set[str] = field(default_factory=set)
    inside: dict[str, "_Entry"] = field(default_factory=dict)


def _ownership(found: Mapping[str, Distribution]) -> _Entry:
    whole = _Entry()
    for name, distribution in found.items():
        for file in distribution.files or []:
            if file.is_absolute() or ".." in file.parts:  # scripts: theirs start the interpreter of another environment
                continue
            entry = whole
            for part in file.parts:
                entry = entry.inside.setdefault(part, _Entry())
                entry.owners.add(name)
    return whole


def _link(entry: _Entry, names: frozenset[str], source: Path, target: Path) -> None:
    """Link what belongs to `names` alone as a whole; folders that they share with others, such as `google`, in part."""
    for part, inner in entry.inside.items():
        if inner.owners <= names:
            (target / part).symlink_to(source / part)
        elif inner.owners & names and inner.inside:
            (target / part).mkdir()
            _link(inner, names, source / part, target / part)


def build_wheel(folder: Path) -> Path:
    """The project's wheel, from a copy of its files: setuptools leaves things where it builds."""
    source = folder / "source"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in SHIPPED_BESIDE:
        shutil.copy(ROOT / name, source / name)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install_wheel(environment: Environment, wheel: Path) -> None:
    """What `pip install` does with a wheel whose dependencies are there."""
    options = ["--no-deps", "--no-index", "--no-compile", "--quiet"]
    command = [sys.executable, "-m", "pip", "--python", str(environment.python), "install", *options, str(wheel)]
    subprocess.run(command, check=True, env=environment.variables())
