"""What tests share: a quiet, offline environment, a home folder of their own, and how they ask for a program."""

import importlib
import os
import shutil
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest
from hypothesis import settings

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

from tasks.mechanism.execution import Execution

# A busy machine takes seconds for what takes milliseconds elsewhere: time is nothing that a test may fail on.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

TESTS = Path(__file__).parent
FAST = (
    "test_",
    "chats/",
    "cli/",
    "corpus/",
    "evaluation/test_gate",
    "evaluation/test_plots",
    "evaluation/test_questions",
    "flows/test_forecast",
    "flows/test_gc",
    "flows/test_plan",
    "flows/test_recipe",
    "mechanism/test_identity",
    "mechanism/test_mirror",
    "mechanism/test_runs",
    "mechanism/test_stage",
    "mechanism/test_store",
    "network/test_attention",
    "quantization/",
    "servers/test_deployments",
    "show/",
    "text/",
    "tokens/",
    "training/test_data",
    "training/test_meter",
    "vocabulary/",
    "whole/test_trust",
)
"""What `make check` runs: functions of their arguments and of files, 80 CPU-s where all tests have 1,700."""


@pytest.fixture
def execution(tmp_path: Path) -> Execution:
    """A fresh home folder, one worker, one thread."""
    return Execution(home=tmp_path / "home", workers=1, threads=1)


def pytest_xdist_auto_num_workers() -> int:
    """One more than cores: of two workers one often waits, for a server, a browser or a process that starts."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses by the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is fast; order files as xdist does, those with many tests first, but for one.

    A single test of three minutes must not come at the end.
    """
    tests = Counter(item.path for item in items)
    for item in items:
        slow = item.get_closest_marker("slow") or "workers" in item.name  # whose processes import all anew: 40 CPU-s
        if str(item.path.relative_to(TESTS)).startswith(FAST) and not slow:
            item.add_marker("fast")
    # As if it had 14: beside the files that wait for servers, after those that train on both cores.
    items.sort(key=lambda item: -14 if item.path.stem == "test_continuous" else -tests[item.path])


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
