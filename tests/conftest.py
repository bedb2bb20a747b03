"""What tests share: a quiet, offline environment and a home folder of their own."""

import os
from pathlib import Path

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


@pytest.fixture
def execution(tmp_path: Path) -> Execution:
    """A fresh home folder, one worker, one thread."""
    return Execution(home=tmp_path / "home", workers=1, threads=1)
