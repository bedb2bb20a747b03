"""Where MLflow's pages show things, below the address of a server.

MLflow 3.17 opens on traces of language models, which are empty here, unless the address asks for `machine_learning`;
its short form `#/runs/RUN` loses that.
"""

import json
import urllib.request
from typing import Any

TIMEOUT_S = 10.0
_MODE = "workflowType=machine_learning"
EXPERIMENTS = f"#/experiments?{_MODE}"
"""The list of all experiments."""


def experiment_page(experiment_id: str) -> str:
    """The runs of an experiment."""
    return f"#/experiments/{experiment_id}/runs?{_MODE}"


def run_page(experiment_id: str, run_id: str) -> str:
    """One run, with curves, parameters and artifacts."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?{_MODE}"


def latest_page(server: str) -> str:
    """The runs of the experiment that ran last; the list of experiments where none ran yet.

    Asked without MLflow's client, whose import takes longer than all else that `bessemer up` does itself.
    """
    try:
        experiments = _search(server, "experiments", max_results=1000)
        ids = [found["experiment_id"] for found in experiments]
        runs = _search(server, "runs", experiment_ids=ids, max_results=1, order_by=["attributes.start_time DESC"])
    except (OSError, ValueError):  # a server that is up but asks for a password, say: its front page still helps
        return EXPERIMENTS
    return experiment_page(runs[0]["info"]["experiment_id"]) if runs else EXPERIMENTS


def _search(server: str, what: str, **wanted: Any) -> list[dict[str, Any]]:
    """One question to MLflow's REST API."""
    request = urllib.request.Request(
        f"{server}/api/2.0/mlflow/{what}/search",
        data=json.dumps(wanted).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
        found: list[dict[str, Any]] = json.load(reply).get(what, [])
    return found
