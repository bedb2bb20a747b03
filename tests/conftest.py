"""What tests share: a quiet, offline environment, a home folder of their own, and how they ask for a program."""

import importlib
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest

# Before any library is imported: nothing may reach outside, and a busy machine must not spin.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    DO_NOT_TRACK="true",
    MLFLOW_DISABLE_TELEMETRY="true",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    OMP_WAIT_POLICY="PASSIVE",
    RAY_USAGE_STATS_ENABLED="0",
)

from tasks.execution import Execution

# Those that wait for servers and those that compute by turns: on two cores three of the former at once took twice their
# time and lost two tests.
LONGEST_FILES = (
    "test_browser", "test_pretrain", "test_end_to_end", "test_strategies", "test_up", "test_ray_launcher",
    "test_continuous", "test_jit", "test_backfill", "test_track", "test_remote_servers",
)  # fmt: skip


@pytest.fixture
def execution(tmp_path: Path) -> Execution:
    """A fresh home folder, one worker, one thread."""
    return Execution(home=tmp_path / "home", workers=1, threads=1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of minutes first, so that no worker is left with one at the end."""
    place = {name: number for number, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def require_module(name: str) -> ModuleType:
    """Import an optional package, or end the test as `_missing` says."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return _missing(f"the package {name}")


def require_program(name: str, *folders: Path) -> str:
    """Find a program on PATH or in the folders, or end the test as `_missing` says."""
    path = os.pathsep.join([*map(str, folders), os.environ.get("PATH", os.defpath)])
    return shutil.which(name, path=path) or _missing(f"the program {name}")


def _missing(what: str) -> NoReturn:
    """Skip the test; fail it where everything must be there, as in `.ci/run`."""
    if os.environ.get("BESSEMER_REQUIRE_ALL") == "1":
        pytest.fail(f"This test needs {what}, which is not installed, and BESSEMER_REQUIRE_ALL is 1.")
    pytest.skip(f"needs {what}, which is not installed")
