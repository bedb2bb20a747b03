"""A key holds what differs from the defaults: every field moves it, a new neutral one does not."""

import copy
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field
from pydantic.dataclasses import dataclass

from tasks.mechanism.identity import changed_fields, default_fields, stage_key
from tasks.mechanism.stage import Stage, StageConfig, was_made_with
from tasks.mechanism.store import Manifest
from tests.helpers.defaults import ROOT, TABLE, all_stages, changed_defaults, main, table_of

COMMAND = "python -m tests.helpers.defaults"


def set_fields(section: Any, **values: Any) -> Any:
    """A copy with these values, whatever bounds say."""
    if isinstance(section, BaseModel):
        return section.model_copy(update=values)
    changed = copy.copy(section)
    for name, value in values.items():
        object.__setattr__(changed, name, value)  # `replace` would validate a dataclass of pydantic's
    return changed


def other(value: Any) -> Any:
    """A value of the same kind that differs."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str | Path):
        return f"{value}x"
    if isinstance(value, tuple | list):
        return (*value, "x")
    if isinstance(value, Mapping):
        return {**value, "x": 1}
    return "x"


def mutations(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(name of a field, a copy of the section in which only that field differs), in sections of it likewise."""
    for name in section.__dataclass_fields__ if is_dataclass(section) else type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel) or is_dataclass(value):
            for inner, changed in mutations(value, f"{prefix}{name}."):
                yield inner, set_fields(section, **{name: changed})
        else:
            yield f"{prefix}{name}", set_fields(section, **{name: other(value)})


@pytest.mark.parametrize("stage", all_stages(), ids=lambda stage: stage.name)
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_every_field_of_every_stage_moves_the_key(stage: Stage[Any]) -> None:
    required = {name: "x" for name, field in stage.config_class.model_fields.items() if field.is_required()}
    config = stage.config_class(**required)
    keys = {name: stage.key(changed, {}) for name, changed in mutations(config)}
    keys[""] = stage.key(config, {})
    assert len(keys) > 1
    by_key: dict[str, str] = {}
    for name, key in keys.items():
        assert key not in by_key, f"{name!r} and {by_key[key]!r} give {stage.name} one key"
        by_key[key] = name


def test_there_are_stages() -> None:
    names = {stage.name for stage in all_stages()}
    assert {"ingest", "filter", "pack", "pretrain", "sft", "dpo", "quantize", "evaluate", "gate"} <= names


def test_the_table_of_defaults_is_that_of_the_code() -> None:
    """Where this fails: `python -m tests.helpers.defaults` writes the table, if no stage needs a new version first."""
    written, found = json.loads(TABLE.read_bytes()), table_of(all_stages())
    assert changed_defaults(written, found) == [], "a default changed: raise the version of the stage"
    assert written == found, f"run `{COMMAND}` and commit {TABLE.relative_to(ROOT)}"


@dataclass(frozen=True)
class Warmup:
    """A section that is a dataclass, as the types of model/ are."""

    steps: int = Field(0, ge=0)
    shape: str = "linear"


class Inner(StageConfig):
    """A section."""

    rate: float = Field(1, gt=0)  # an integer, as people write it
    warmup: Warmup = Warmup()


class Before(StageConfig):
    """A config, before a field is added."""

    name: str
    inner: Inner = Inner(rate=3)
    parts: tuple[Inner, ...] = ()


@dataclass(frozen=True)
class LongerWarmup(Warmup):
    """With a field more."""

    floor: float = 0.0


class InnerAfter(Inner):
    """With a field more, in itself and in its section."""

    rate: float = Field(1, gt=0)
    warmup: LongerWarmup = LongerWarmup()
    decay: Literal["none", "half"] = "none"


InnerAfter.__name__ = "Inner"


class After(Before):
    """The same config with a field more at every level."""

    inner: InnerAfter = InnerAfter(rate=3)
    size: int = 8


def key(config: StageConfig) -> str:
    return stage_key("a", 1, changed_fields(config), {}, "")


@pytest.mark.parametrize("rate", [3.0, 1.0, 5.0])
def test_an_added_field_with_a_default_moves_no_key(rate: float) -> None:
    before = Before(name="x", inner=Inner(rate=rate), parts=(Inner(), Inner(rate=2)))
    after = After(name="x", inner=InnerAfter(rate=rate), parts=(InnerAfter(), InnerAfter(rate=2)))
    assert "size" in After.model_fields and "decay" in InnerAfter.model_fields
    assert key(before) == key(after)
    assert key(after) != key(after.model_copy(update={"size": 9}))
    assert key(after) != key(after.model_copy(update={"parts": (InnerAfter(decay="half"), InnerAfter(rate=2))}))


def test_a_key_holds_what_differs_from_the_configs_own_defaults() -> None:
    assert changed_fields(Before(name="x")) == {"name": "x"}
    assert changed_fields(Before(name="x", inner=Inner(rate=3.0))) == {"name": "x"}
    assert changed_fields(Before(name="x", inner=Inner())) == {"name": "x", "inner": {"rate": 1}}
    warm = Before(name="x", inner=Inner(rate=3, warmup=Warmup(steps=5)))
    assert changed_fields(warm) == {"name": "x", "inner": {"warmup": {"steps": 5}}}
    assert changed_fields(Before(name="x", parts=(Inner(),)))["parts"] == [["Inner", {}]]


def test_sections_of_two_classes_never_share_a_key() -> None:
    class Kind(StageConfig):
        rate: float = 1

    class Other(Kind):
        rate: float = 2

    class Choice(StageConfig):
        kind: Kind | None = None

    keys = {key(Choice()), key(Choice(kind=Kind())), key(Choice(kind=Other())), key(Choice(kind=Other(rate=1)))}
    assert len(keys) == 4


def test_a_manifest_from_before_a_field_was_added_is_of_the_same_config() -> None:
    """Read as a person would: what the config did not have then was as it is by default now."""
    old = Before(name="x", inner=Inner(rate=2), parts=(Inner(),))
    manifest = Manifest(
        stage="a",
        label="a",
        version=1,
        key=key(old),
        digest="",
        config=old.model_dump(mode="json"),
        inputs={},
        code_digest="",
        metrics={},
        seconds=0,
        cpu_seconds=0,
        input_bytes=0,
        size_bytes=0,
        created="",
        environment={},
    )
    same = After(name="x", inner=InnerAfter(rate=2), parts=(Inner(),))
    assert was_made_with(manifest, old)
    assert was_made_with(manifest, After(name="x", inner=InnerAfter(rate=2), parts=(Inner(),)))
    assert not was_made_with(manifest, After(name="x", inner=InnerAfter(rate=2), parts=(Inner(),), size=9))
    assert not was_made_with(manifest, Inner())
    assert key(same) == manifest.key


def test_a_field_without_a_default_always_enters() -> None:
    assert "name" not in default_fields(Before)
    assert key(Before(name="x")) != key(Before(name="y"))


TABLE_BEFORE: dict[str, Any] = {"a": {"version": 1, "defaults": {"x": 1, "inner": {"y": 2}}}}


@pytest.mark.parametrize(
    ("after", "changed"),
    [
        ({"version": 1, "defaults": {"x": 1, "inner": {"y": 2}}}, []),
        ({"version": 1, "defaults": {"x": 1, "inner": {"y": 2, "z": 3}, "w": 4}}, []),
        ({"version": 1, "defaults": {"x": 1, "inner": {"y": 3}}}, ["a.inner.y: 2 -> 3"]),
        ({"version": 1, "defaults": {"inner": {"y": 2}, "renamed": 5}}, ["a.x: 1 -> 'no such field'"]),
        ({"version": 2, "defaults": {"x": 2, "inner": {}}}, []),
    ],
)
def test_a_changed_default_needs_a_new_version(after: dict[str, Any], changed: list[str]) -> None:
    assert changed_defaults(TABLE_BEFORE, {"a": after}) == changed


def test_the_command_writes_the_table_and_refuses_a_changed_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.helpers.defaults.TABLE", tmp_path / "defaults.json")
    main()
    written = (tmp_path / "defaults.json").read_text()
    assert written == TABLE.read_text()
    table = json.loads(written)
    table["gate"]["defaults"]["confidence"] = 0.9
    (tmp_path / "defaults.json").write_text(json.dumps(table))
    with pytest.raises(SystemExit, match=r"gate.confidence: 0.9 -> 0.95"):
        main()


def test_the_order_of_sets_in_a_config_is_no_part_of_its_key() -> None:
    """Strings hash anew in every process, so a set of them is written in another order."""
    program = (
        "from tasks.mechanism.identity import changed_fields, canonical_json\n"
        "from tasks.mechanism.stage import StageConfig\n"
        "class C(StageConfig):\n    words: frozenset[str] = frozenset()\n"
        "print(canonical_json(changed_fields(C(words=frozenset('abcdefgh')))))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env={"PYTHONHASHSEED": seed, "PATH": ""}, capture_output=True
        )
        for seed in ("1", "2")
    ]
    assert runs[0].returncode == 0 and runs[0].stdout == runs[1].stdout
