"""Dependencies: each that is declared has its reason and a home that imports it, and what is imported is declared."""

import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.test_architecture import LAYERS, ROOT, SOURCES, imports

ROW = re.compile(r"^\| `(?P<name>[\w.-]+)`(?P<extra> \([^)]*\))? \| (?P<reason>[^|]+) \| (?P<home>[^|]+) \|$", re.M)
ROWS = {row["name"]: row for row in ROW.finditer((ROOT / "docs" / "dependencies.md").read_text())}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def declared() -> dict[str, str]:
    """Each requirement of the project by its canonical name, and the extra it belongs to, "" for all."""
    extras = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    pairs = [(canonicalize_name(Requirement(text).name), extra) for extra, texts in extras.items() for text in texts]
    return {name: extra for name, extra in reversed(pairs) if name != "bessemer"}


@cache
def importers() -> dict[str, set[str]]:
    """Which files of the layers import each distribution, by its canonical name."""
    found: dict[str, set[str]] = {}
    # The first is of use beside a GPU only, the second is half of pydantic, which asks for exactly one version of it.
    distributions = {**packages_distributions(), "pynvml": ["nvidia-ml-py"], "pydantic_core": ["pydantic"]}
    for path in SOURCES:
        for top in {module.split(".")[0] for module in imports(path)} - set(sys.stdlib_module_names) - set(LAYERS):
            names = [canonicalize_name(name) for name in distributions.get(top, [top])]
            ours = [name for name in names if name in declared()]  # `mlflow` comes in three parts, of which we name one
            for name in ours or names:
                found.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    return found


def test_every_dependency_has_a_row() -> None:
    rows = {canonicalize_name(name) for name in ROWS}
    assert rows == set(declared()), f"without a row: {set(declared()) - rows}, no dependency: {rows - set(declared())}"


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_home_exists_and_imports_what_lives_there(name: str) -> None:
    """A folder ends in a slash; `not imported` says that nothing of ours does."""
    home, users = ROWS[name]["home"], importers().get(canonicalize_name(name), set())
    if home.startswith("not imported"):
        assert not users, f"{name} is imported by {users}"
        return
    homes = re.findall(r"`([^`]+)`", home)
    assert homes, f"{name} has no home"
    for place in homes:
        assert (ROOT / place).exists(), f"{name} is said to live in {place}, which does not exist"
        assert place.endswith("/") == (ROOT / place).is_dir()
        assert [user for user in users if user.startswith(place)], f"nothing in {place} imports {name}"
    assert not [user for user in users if not user.startswith(tuple(homes))], f"{name} is imported outside of {homes}"


def test_what_is_imported_is_declared() -> None:
    """Else it is there by chance, through something else that needs it today."""
    undeclared = {name: users for name, users in importers().items() if name not in declared()}
    assert not undeclared
