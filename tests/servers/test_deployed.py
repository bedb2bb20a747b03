"""When `bessemer up` deploys again: as soon as anything has changed that a deployment depends on."""

import importlib
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, Field

from flows.recipe import Recipe
from flows.servers import deployed, deployments, lost_runs
from flows.servers.deployed import DATABASE, FORMS, fingerprint


def entrypoints() -> set[str]:
    return {each["entrypoint"] for each in yaml.safe_load(deployments.prefect_yaml())["deployments"]}


@pytest.mark.parametrize("entrypoint", sorted(entrypoints()))
def test_whatever_a_deployed_flow_takes_is_in_the_fingerprint(entrypoint: str) -> None:
    module, _, name = entrypoint.rpartition(".")
    flow = getattr(importlib.import_module(module), name)
    taken = {kind for key, kind in typing.get_type_hints(flow.fn).items() if key != "return"}
    assert taken and taken <= set(FORMS)


@pytest.mark.parametrize("name", ["BESSEMER_TRACKING_URI", "BESSEMER_OVERLAP", DATABASE])
def test_what_is_filled_in_from_the_environment_counts(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv(name, raising=False)
    before = fingerprint(tmp_path)
    monkeypatch.setenv(name, "something")
    assert fingerprint(tmp_path) != before
    monkeypatch.delenv(name)
    assert fingerprint(tmp_path) == before


class Longer(Recipe):
    """A recipe whose form has a field more."""

    more: int = Field(1, description="More.")


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_counts(form: type[BaseModel], tmp_path: Path, monkeypatch: Any) -> None:
    before = fingerprint(tmp_path)
    monkeypatch.setattr(deployed, "FORMS", tuple(Longer if each is form else each for each in FORMS))
    assert fingerprint(tmp_path) != before


def copy_makers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the files that say what is deployed lie in this folder too, and be looked for there."""
    modules = (*(name.rpartition(".")[0] for name in entrypoints()), deployments.__name__, lost_runs.__name__)
    folder.mkdir()
    for module in modules:
        (folder / module).write_bytes(deployed._file_of(module).read_bytes())
    monkeypatch.setattr(deployed, "_file_of", lambda module: folder / module)


def test_where_the_code_lies_where_runs_begin_and_the_home_count(tmp_path: Path, monkeypatch: Any) -> None:
    before = fingerprint(tmp_path / "home")
    assert fingerprint(tmp_path / "other") != before
    copy_makers(tmp_path / "moved", monkeypatch)
    moved = fingerprint(tmp_path / "home")
    assert moved != before
    monkeypatch.chdir(tmp_path)
    assert fingerprint(tmp_path / "home") != moved


def test_presets_count(tmp_path: Path, monkeypatch: Any) -> None:
    before = fingerprint(tmp_path)
    text = deployments.prefect_yaml() + "\n# another line\n"
    monkeypatch.setattr(deployments, "prefect_yaml", lambda: text)
    assert fingerprint(tmp_path) != before


@pytest.mark.parametrize("changed", ["flows.watch", "flows.servers.deployments"])
def test_files_count(changed: str, tmp_path: Path, monkeypatch: Any) -> None:
    copy_makers(tmp_path / "moved", monkeypatch)
    before = fingerprint(tmp_path)
    file = tmp_path / "moved" / changed
    file.write_text(file.read_text() + "\n# another line\n")
    assert fingerprint(tmp_path) != before
