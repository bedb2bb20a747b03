"""What makes two results the same: the digest of first-party code as imported, and the key of a stage call."""

import ast
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("tasks", "model")
# These carry artifacts and figures around and never shape a byte of them (the tests compare digests over workers,
# engines and runners), so editing them reruns nothing.
MECHANISM = frozenset(
    f"tasks.{name}"
    for name in (
        "engines",
        "execution",
        "identity",
        "launch",
        "lifeline",
        "progress",
        "shards",
        "stage",
        "store",
        "track",
    )
)

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@cache
def code_digest(module: str) -> str:
    """sha256 of the module and of every first-party module it imports, transitively, without comments or docstrings.

    Read once per process, at import time: a long-lived worker is identified by the code it runs, not by what an editor
    has saved since.
    """
    digest = hashlib.sha256()
    for name in sorted(_closure(module)):
        digest.update(f"{name}\0{_normalised_source(name)}\n".encode())
    return digest.hexdigest()


def _closure(module: str) -> set[str]:
    found: set[str] = set()
    queue = [module]
    while queue:
        name = queue.pop()
        if name in found or name in MECHANISM:
            continue
        found.add(name)
        queue += _first_party_imports(name)
    return found


@cache
def _module_file(name: str) -> Path | None:
    stem = ROOT.joinpath(*name.split("."))
    for candidate in (stem.with_suffix(".py"), stem / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@cache
def _tree(name: str) -> ast.Module:
    path = _module_file(name)
    assert path is not None, f"{name} is not a first-party module"
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _first_party_imports(name: str) -> list[str]:
    """Modules of this project that `name` imports anywhere, inside functions too."""
    found: list[str] = []
    for node in ast.walk(_tree(name)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [f for f in found if f.split(".")[0] in PACKAGES and _module_file(f) is not None]


def _normalised_source(name: str) -> str:
    """The module's syntax tree as text: no comments, no docstrings, no layout."""
    tree = ast.parse(ast.unparse(_tree(name)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and _has_docstring(
            node
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


def _has_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    first = node.body[0] if node.body else None
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def stage_key(stage: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str], code: str) -> str:
    """The key of a stage call: equal keys promise equal bytes. `code` is "" for stages that are held dear."""
    payload = {"stage": stage, "version": version, "config": config, "inputs": inputs, "code": code}
    return hashlib.sha256(canonical_json(payload)).hexdigest()
