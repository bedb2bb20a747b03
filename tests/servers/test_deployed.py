"""When `bessemer up` deploys again: as soon as anything has changed that a deployment depends on."""

import importlib
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, Field

from flows.recipe import Recipe
from flows.servers import deployed, deployments
from flows.servers.deployed import DATABASE, FORMS, fingerprint


def entrypoints() -> set[str]:
    return {each["entrypoint"] for each in yaml.safe_load(deployments.prefect_yaml())["deployments"]}


@pytest.mark.parametrize("entrypoint", sorted(entrypoints()))
def test_whatever_a_deployed_flow_takes_is_in_the_fingerprint(entrypoint: str) -> None:
    path, _, name = entrypoint.partition(":")
    flow = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)
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


def test_where_the_code_lies_and_the_home_count(tmp_path: Path, monkeypatch: Any) -> None:
    before = fingerprint(tmp_path / "home")
    assert fingerprint(tmp_path / "other") != before
    moved = tmp_path / "checkout"
    moved.mkdir()
    for name in ("flows", "prefect.yaml"):
        (moved / name).symlink_to(deployments.ROOT / name)
    monkeypatch.setattr(deployments, "ROOT", moved)
    assert fingerprint(tmp_path / "home") != before


@pytest.mark.parametrize("changed", ["prefect.yaml", "flows/watch.py"])
def test_files_count(changed: str, tmp_path: Path, monkeypatch: Any) -> None:
    for name in ("prefect.yaml", *(entrypoint.partition(":")[0] for entrypoint in entrypoints())):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((deployments.ROOT / name).read_bytes())
    monkeypatch.setattr(deployments, "ROOT", tmp_path)
    before = fingerprint(tmp_path)
    (tmp_path / changed).write_text((tmp_path / changed).read_text() + "\n# another line\n")
    assert fingerprint(tmp_path) != before
