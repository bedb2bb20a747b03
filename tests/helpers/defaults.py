"""The table of defaults, a section a stage: `python -m tests.helpers.defaults` writes it anew.

A key holds only what differs from the defaults, so a default that changes under an unchanged version would have two
results share a key. A field that went may have left its default to another name, and counts as changed. The command
refuses both; raise the version of the stage first.
"""

import importlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from tasks.mechanism.identity import default_fields
from tasks.mechanism.runs import flatten
from tasks.mechanism.stage import Stage

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "tests" / "defaults.json"
_MISSING = "no such field"


def all_stages() -> list[Stage[Any]]:
    """Every stage that is declared below tasks/, by name."""
    found = {}
    for path in sorted((ROOT / "tasks").rglob("*.py")):
        if "\n@stage(" in path.read_text(encoding="utf-8"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            declared = [value for value in vars(importlib.import_module(name)).values() if isinstance(value, Stage)]
            found |= {stage.name: stage for stage in declared}
    return [found[name] for name in sorted(found)]


def table_of(stages: Iterable[Stage[Any]]) -> dict[str, Any]:
    """Version and defaults of each stage; a field without a default has no place in it."""
    return {
        stage.name: {
            "version": stage.version,
            "defaults": to_jsonable_python(default_fields(stage.config_class)),
        }
        for stage in stages
    }


def changed_defaults(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What changed of the defaults of stages whose version did not, in words; a new field or stage is no change."""
    found = []
    for name in sorted(old.keys() & new.keys()):
        before, after = flatten(old[name]["defaults"]), flatten(new[name]["defaults"])
        if old[name]["version"] == new[name]["version"]:
            now = {field: after.get(field, _MISSING) for field in before}
            found += [f"{name}.{f}: {before[f]!r} -> {now[f]!r}" for f in before if before[f] != now[f]]
    return found


def main() -> None:
    """Write the table.

    Raises:
        SystemExit: a default changed under an unchanged version.
    """
    old = json.loads(TABLE.read_bytes()) if TABLE.exists() else {}
    new = table_of(all_stages())
    changed = changed_defaults(old, new)
    if changed:
        raise SystemExit(
            "Raise the version of the stage, since results under its old keys differ:\n" + "\n".join(changed)
        )
    TABLE.write_text(json.dumps(new, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
