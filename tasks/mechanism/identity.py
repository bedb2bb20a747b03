"""What makes two results the same: the digest of first-party code as imported, and the key of a stage call."""

import ast
import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tasks.mechanism.store import write_atomically

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("tasks", "model")
UNCOUNTED = ("tasks.mechanism", "tasks.track")
"""Rooms that carry artifacts and figures around and never shape a byte of them (the tests compare digests over workers,
engines and runners), so editing them reruns nothing."""

NORMALISATION = 1
"""Raise when the way code is digested changes: remembered digests are void then."""

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class ModuleCode:
    """What counts of a module: the digest of its own code, and the names it imports, wherever in the file."""

    digest: str
    imports: tuple[str, ...]


@cache
def code_digest(module: str) -> str:
    """sha256 of the module and of every first-party module it imports, transitively, without comments or docstrings.

    Read once per process, at import time: a long-lived worker is identified by the code it runs, not by what an editor
    has saved since.
    """
    digest = hashlib.sha256()
    for name in sorted(_closure(module)):
        digest.update(f"{name}\0{_module_code(name).digest}\n".encode())
    return digest.hexdigest()


def _closure(module: str) -> set[str]:
    found: set[str] = set()
    queue = [module]
    while queue:
        name = queue.pop()
        if name in found or _is_uncounted(name):
            continue
        found.add(name)
        queue += [i for i in _module_code(name).imports if i.split(".")[0] in PACKAGES and _module_file(i)]
    return found


def _is_uncounted(name: str) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in UNCOUNTED)


@cache
def _module_file(name: str) -> Path | None:
    stem = ROOT.joinpath(*name.split("."))
    for candidate in (stem.with_suffix(".py"), stem / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@cache
def _module_code(name: str) -> ModuleCode:
    """Remembered beside Python's own bytecode: parsing a hundred modules takes 2 s, which a cached run would notice."""
    path = _module_file(name)
    assert path is not None, f"{name} is not a first-party module"
    source = path.read_bytes()
    stamp = hashlib.sha256(f"{NORMALISATION}\0".encode() + source).hexdigest()
    memo = path.parent / "__pycache__" / f"{path.stem}.code-digest.json"
    try:
        known = json.loads(memo.read_bytes())
        if known["stamp"] == stamp:
            return ModuleCode(known["digest"], tuple(known["imports"]))
    except (OSError, ValueError, KeyError):
        pass  # absent, torn or foreign: parse
    found = _parse(source)
    with suppress(OSError):  # a read-only installation parses every time
        write_atomically(memo, canonical_json({"stamp": stamp, "digest": found.digest, "imports": found.imports}))
    return found


def _parse(source: bytes) -> ModuleCode:
    tree = ast.parse(source)
    imports: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            imports += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        if isinstance(node, _Documented) and _has_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return ModuleCode(hashlib.sha256(ast.dump(tree).encode()).hexdigest(), tuple(imports))


def _has_docstring(node: _Documented) -> bool:
    first = node.body[0] if node.body else None
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def stage_key(stage: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str], code: str) -> str:
    """The key of a stage call: equal keys promise equal bytes. `code` is "" for stages that are held dear."""
    payload = {"stage": stage, "version": version, "config": config, "inputs": inputs, "code": code}
    return hashlib.sha256(canonical_json(payload)).hexdigest()
