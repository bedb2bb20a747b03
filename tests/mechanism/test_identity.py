"""The code digest moves with what the code does, and only with that."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.mechanism import identity
from tasks.mechanism.identity import canonical_json, stage_key

FIRST = '''"""A module."""
from tasks.helper import one

# a comment
def add(x: int) -> int:
    """Add one."""
    return x + one()
'''
HELPER = '''"""Helps."""
from tasks import mechanism_of_ours
from tasks.mechanism import store

def one() -> int:
    return 1
'''


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of four modules, one of them in the mechanism's folder and one beside it, under a similar name."""
    (tmp_path / "tasks" / "mechanism").mkdir(parents=True)
    (tmp_path / "tasks" / "__init__.py").write_text("")
    (tmp_path / "tasks" / "mechanism" / "__init__.py").write_text("")
    (tmp_path / "tasks" / "mechanism" / "store.py").write_text("x = 1\n")
    (tmp_path / "tasks" / "mechanism_of_ours.py").write_text("x = 1\n")
    (tmp_path / "tasks" / "first.py").write_text(FIRST)
    (tmp_path / "tasks" / "helper.py").write_text(HELPER)
    monkeypatch.setattr(identity, "ROOT", tmp_path)
    return tmp_path / "tasks"


def digest() -> str:
    """The digest as a new process would see it."""
    for function in (identity.code_digest, identity._module_code, identity._module_file):
        function.cache_clear()
    return identity.code_digest("tasks.first")


@pytest.fixture(autouse=True)
def forget_afterwards() -> object:
    yield
    for function in (identity.code_digest, identity._module_code, identity._module_file):
        function.cache_clear()


@pytest.mark.parametrize(
    ("file", "old", "new", "moves"),
    [
        ("first.py", "# a comment", "# another comment", False),
        ("first.py", '"""Add one."""', '"""Add 1."""', False),
        ("first.py", '"""A module."""', '"""The module."""', False),
        ("first.py", "return x + one()", "return  (x + one())", False),
        ("first.py", "x + one()", "x - one()", True),
        ("helper.py", "return 1", "return 2", True),
        ("helper.py", '"""Helps."""', '"""Helps more."""', False),
        ("mechanism/store.py", "x = 1", "x = 2", False),
        ("mechanism_of_ours.py", "x = 1", "x = 2", True),
    ],
)
def test_code_digest(project: Path, file: str, old: str, new: str, moves: bool) -> None:
    before = digest()
    source = (project / file).read_text()
    assert old in source
    (project / file).write_text(source.replace(old, new))
    assert (digest() != before) is moves


def test_import_inside_a_function_counts(project: Path) -> None:
    (project / "first.py").write_text("def f():\n    from tasks.helper import one\n    return one()\n")
    before = digest()
    (project / "helper.py").write_text("def one():\n    return 2\n")
    assert digest() != before


def test_digest_is_of_the_code_as_imported(project: Path) -> None:
    before = digest()
    (project / "helper.py").write_text("def one():\n    return 3\n")
    assert identity.code_digest("tasks.first") == before


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.booleans(), max_size=5))
def test_canonical_json_ignores_order(value: dict[str, object]) -> None:
    assert canonical_json(value) == canonical_json(dict(reversed(value.items())))


def test_each_part_moves_the_key() -> None:
    base = ("a", 1, {"x": 1}, {"in": "d"}, "c")
    others = [("b", *base[1:]), ("a", 2, *base[2:]), (*base[:2], {"x": 2}, *base[3:]), (*base[:3], {"in": "e"}, "c")]
    keys = {stage_key(*parts) for parts in [base, *others, (*base[:4], "d")]}
    assert len(keys) == 6
