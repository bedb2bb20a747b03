"""CONTRIBUTING.md's table of what to touch, held against one of each added to a copy of the tree and working there."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.whole.newcomer.additions import ADDITIONS, Addition

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("flows", "tasks", "model")
TIMEOUT_S = 1800  # a machine that others use


@dataclass(frozen=True)
class Row:
    """How many files the table says, and a pattern for each of them."""

    files: int
    patterns: tuple[str, ...]


def table() -> dict[str, Row]:
    """The table's rows by what is added. ROOM and NAME stand for a name, a folder for any file in it."""
    lines = re.findall(r"^\| (an? [^|]+) \| (\d+) \| (.+) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    rows = {}
    for added, files, which in lines:
        paths = re.findall(r"`((?:flows|tasks|model)/[^`]*)`", which)
        patterns = [re.escape(path) + (r"\w+\.py" if path.endswith("/") else "") for path in paths]
        rows[added] = Row(int(files), tuple(re.sub("ROOM|NAME", r"\\w+", pattern) for pattern in patterns))
    return rows


def copied(folder: Path) -> Path:
    """The source and its tests, without what was compiled from them."""
    for name in (*SOURCES, "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def touched(copy: Path) -> set[str]:
    """Files of the source that are not what they are in the original."""
    here, there = (
        {str(path.relative_to(root)): path.read_bytes() for layer in SOURCES for path in (root / layer).rglob("*.py")}
        for root in (ROOT, copy)
    )
    return {name for name in here.keys() | there.keys() if here.get(name) != there.get(name)}


def run_in(copy: Path, compiled: bool, *arguments: str) -> None:
    """Run `python ARGUMENTS` in the copy, of which it imports everything."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "NUMBA_DISABLE_JIT": "0" if compiled else "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=copy,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:]


def test_there_is_an_example_of_each_row() -> None:
    assert set(table()) == {addition.row for addition in ADDITIONS}


@pytest.mark.parametrize("addition", ADDITIONS, ids=lambda addition: addition.row)
def test_an_addition_takes_the_files_that_the_table_says(addition: Addition, tmp_path: Path) -> None:
    copy, row = copied(tmp_path / "copy"), table()[addition.row]
    assert touched(copy) == set()
    addition.apply(copy)
    files = touched(copy)
    assert len(files) == row.files == len(row.patterns), files
    for file in files:
        assert any(re.fullmatch(pattern, file) for pattern in row.patterns), f"the table does not name {file}"

    run_in(copy, addition.compiled, "-m", "tests.helpers.defaults")
    proof = ["tests/whole/newcomer/check_place.py", *addition.proof]
    run_in(copy, addition.compiled, "-m", "pytest", "-q", "-p", "no:cacheprovider", *proof)
