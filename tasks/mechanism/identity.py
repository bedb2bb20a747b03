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

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from tasks.mechanism.store import write_atomically

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("tasks", "model")
UNCOUNTED = ("tasks.mechanism", "tasks.track")
"""Rooms that carry artifacts and figures around and never shape a byte of them (the tests compare digests over workers,
engines and runners), so editing them reruns nothing."""

NORMALISATION = 1
"""Raise when the way code is digested changes: remembered digests are void then."""

_ANYTHING: TypeAdapter[Any] = TypeAdapter(Any)
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
    for name in sorted(_closure(module)):  # a set's order differs from process to process
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
    # Known by content: a checkout sets the times of files anew.
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
            # `from a import b` imports the module a.b as well as a name of a: which, the caller sees by the files.
            imports += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        if isinstance(node, _Documented) and _has_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]  # a body of a docstring alone does nothing
    # A dump holds neither comments nor line numbers: whoever formats a file reruns nothing.
    return ModuleCode(hashlib.sha256(ast.dump(tree).encode()).hexdigest(), tuple(imports))


def _has_docstring(node: _Documented) -> bool:
    first = node.body[0] if node.body else None
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    # allow_nan: NaN is no JSON, and equal bytes would stand for values that differ from themselves.
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def stage_key(stage: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str], code: str) -> str:
    """The key of a stage call: equal keys promise equal bytes.

    Args:
        stage: the stage's name.
        version: the stage's version; raised by hand when its results change.
        config: the fields that differ from their defaults (`changed_fields`).
        inputs: content digest of each input, by its name.
        code: the stage's code digest; "" for stages that rerun on a new version only.
    """
    payload = {"stage": stage, "version": version, "config": config, "inputs": inputs, "code": code}
    return hashlib.sha256(canonical_json(payload)).hexdigest()


def changed_fields(config: Any) -> dict[str, Any]:
    """The fields of a config that differ from their defaults, as JSON values; in sections of it likewise.

    Only these enter a key, so that a new field with a neutral default moves none. A section is compared with the
    section that the config itself has by default, not with the section's own class: a training stage may have another
    usual learning rate than the optimizer has. A field without a default always enters.
    """
    return _changes(_values(config), default_fields(type(config)))


def default_fields(kind: type[Any]) -> dict[str, Any]:
    """The defaults of a config class, or of a section's, by field; a field without one is left out."""
    usual = {name: field for name, field in _declared(kind).items() if not field.is_required()}
    return {name: field.get_default(call_default_factory=True) for name, field in usual.items()}


def _changes(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name not in defaults:
            found[name] = _written(value)
        elif _is_section(value) and type(value) is type(defaults[name]):
            changes = _changes(_values(value), _values(defaults[name]))
            found |= {name: changes} if changes else {}
        elif _written(value) != _written(defaults[name]):  # as numbers: an integer default of a float field is equal
            found[name] = _written(value)
    return found


def _written(value: Any) -> Any:
    """A value as it stands in a key. Sections in a list, or of another class than the default, name their class: of two
    classes with their own defaults nothing else would tell them apart."""
    if _is_section(value):
        return [type(value).__name__, changed_fields(value)]
    if isinstance(value, list | tuple):
        return [_written(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _written(item) for name, item in value.items()}
    if isinstance(value, set | frozenset):  # their order differs from process to process
        return sorted((_written(item) for item in value), key=canonical_json)
    return _ANYTHING.dump_python(value, mode="json")


def _is_section(value: Any) -> bool:
    return hasattr(type(value), "__pydantic_fields__")  # a model, or one of model/'s dataclasses


def _declared(kind: type[Any]) -> Mapping[str, FieldInfo]:
    declared: Mapping[str, FieldInfo] = kind.__pydantic_fields__
    return declared


def _values(section: Any) -> dict[str, Any]:
    return {name: getattr(section, name) for name in _declared(type(section))}
