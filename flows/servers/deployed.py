"""All that a deployment depends on, as one line: where it has not changed, `bessemer up` need not deploy again.

Deploying takes 10 s; a deployment that is stale shows yesterday's form, or sends runs to yesterday's tracking server.
"""

import hashlib
import importlib.util
import os
import re
from importlib.metadata import version
from pathlib import Path

import yaml

from flows.backfill_plan import Dates
from flows.recipe import Recipe
from flows.servers import deployments, lost_runs
from flows.watched import WatchConfig
from tasks.mechanism.execution import Execution
from tasks.mechanism.identity import canonical_json
from tasks.mechanism.store import file_sha256

FORMS = (Recipe, Execution, WatchConfig, Dates)
"""What the flows that are deployed take; a test holds this against their parameters."""
DATABASE = "PREFECT_API_DATABASE_CONNECTION_URL"
_HOME = "BESSEMER_HOME"


def fingerprint(home: Path) -> str:
    """One line, with the home in plain words at its end; the environment is that of the process that deploys."""
    text = deployments.prefect_yaml()
    modules = {each["entrypoint"].rpartition(".")[0] for each in yaml.safe_load(text)["deployments"]}
    # Docstrings describe the form's sections; the other two files say what else is made on the server.
    makers = sorted({_file_of(name) for name in (*modules, deployments.__name__, lost_runs.__name__)})
    filled_in = {*re.findall(r"{{ \$(\w+) }}", text)} - {_HOME}
    whole = {
        "text": text,
        "forms": [form.model_json_schema() for form in FORMS],
        "makers": [file_sha256(path) for path in makers],
        "environment": {name: os.environ.get(name, "") for name in (*filled_in, DATABASE)},
        "code": str(_file_of(deployments.__name__)),  # which installation workers import
        "folder": str(Path.cwd()),  # where runs of the deployments begin
        "prefect": version("prefect"),
    }
    return f"{hashlib.sha256(canonical_json(whole)).hexdigest()} {home.resolve()}"


def _file_of(module: str) -> Path:
    """The file of a module, without running it: a flow's would import Prefect."""
    spec = importlib.util.find_spec(module)
    assert spec and spec.origin, f"{module} is not a module of ours"
    return Path(spec.origin)
