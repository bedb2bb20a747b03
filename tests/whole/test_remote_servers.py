"""Servers as a team runs them: PostgreSQL, an object store and passwords, by configuration alone."""

import base64
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flows.addresses import Addresses, save_addresses
from flows.servers.notify import notify
from flows.servers.processes import (
    LOOPBACK,
    free_port,
    mlflow_environment,
    start_child,
    start_prefect,
    wait_until_healthy,
)
from tests.conftest import require_module, require_program
from tests.helpers import tiny
from tests.helpers.up import ROOT

pytestmark = pytest.mark.slow
USER, PASSWORD = "team", "a long pass phrase"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@dataclass(frozen=True)
class Remote:
    """Prefect and MLflow behind passwords, their databases in PostgreSQL, artifacts in S3."""

    home: Path
    addresses: Addresses
    postgresql: str
    s3: str


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """A PostgreSQL server with two empty databases; its address without a database. It refuses to run as root."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    programs = Path(require_program("initdb", *folders)).parent
    folder = Path(tempfile.mkdtemp(prefix="bessemer-postgresql-"))
    owner: dict[str, Any] = {}
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
        owner = {"user": "postgres", "group": "postgres", "extra_groups": []}
    port = free_port()

    def call(program: str, *arguments: str) -> None:
        subprocess.run(
            [str(programs / program), *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL, **owner
        )

    data = str(folder / "data")
    call("initdb", "--auth=trust", "--username=bessemer", "--no-sync", "-D", data)
    listen = f"-p {port} -c listen_addresses={LOOPBACK} -k {folder}"
    call("pg_ctl", "-D", data, "-w", "-o", listen, "-l", str(folder / "log"), "start")
    try:
        for name in ("prefect", "mlflow"):
            call("createdb", "-h", LOOPBACK, "-p", str(port), "-U", "bessemer", name)
        yield f"bessemer@{LOOPBACK}:{port}"
    finally:
        call("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """An S3 server with an empty bucket `models`."""
    server = require_module("moto.server").ThreadedMotoServer(ip_address=LOOPBACK, port=0)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    bucket(address).create()
    yield address
    server.stop()


def bucket(address: str) -> Any:
    return (
        require_module("boto3")
        .resource(
            "s3",
            endpoint_url=address,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )
        .Bucket("models")
    )


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory, postgresql: str, s3: str) -> Iterator[Remote]:
    home = tmp_path_factory.mktemp("remote") / "home"
    ports = free_port(), free_port()
    addresses = Addresses(
        prefect=f"http://{LOOPBACK}:{ports[0]}", mlflow=f"http://{LOOPBACK}:{ports[1]}", pid=os.getpid()
    )
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PREFECT_API_DATABASE_CONNECTION_URL", f"postgresql+asyncpg://{postgresql}/prefect")
        environment.setenv("PREFECT_SERVER_API_AUTH_STRING", f"{USER}:{PASSWORD}")
        prefect = start_prefect(home, ports[0])
    mlflow = start_child(
        home,
        "mlflow",
        "mlflow",
        [
            *("server", "--host", LOOPBACK, "--port", str(ports[1]), "--workers", "1", "--app-name", "basic-auth"),
            *("--backend-store-uri", f"postgresql://{postgresql}/mlflow", "--artifacts-destination", "s3://models"),
        ],
        {**mlflow_environment(), **CREDENTIALS, **mlflow_passwords(home), "MLFLOW_S3_ENDPOINT_URL": s3},
    )
    try:
        wait_until_healthy(prefect, f"{addresses.prefect_api}/health")
        wait_until_healthy(mlflow, f"{addresses.mlflow}/health")
        save_addresses(home, addresses)
        yield Remote(home, addresses, postgresql, s3)
    finally:
        mlflow.stop()
        prefect.stop()


def mlflow_passwords(home: Path) -> dict[str, str]:
    """Settings of MLflow's basic-auth application: its own database of users, and the first administrator."""
    settings = home / "auth.ini"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(
        "[mlflow]\n"
        "default_permission = READ\n"
        f"database_uri = sqlite:///{home / 'auth.db'}\n"
        f"admin_username = {USER}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 60\n"
    )
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "for tests",
    }


def status(address: str, password: str = "") -> int:
    """The HTTP status of a POST of an empty search."""
    request = urllib.request.Request(address, data=b'{"max_results": 5}', headers={"Content-Type": "application/json"})
    if password:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{USER}:{password}".encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as refusal:
        return refusal.code


@pytest.mark.parametrize("server", ["prefect", "mlflow"])
def test_both_servers_refuse_without_the_password(remote: Remote, server: str) -> None:
    address = {
        "prefect": f"{remote.addresses.prefect_api}/flow_runs/count",
        "mlflow": f"{remote.addresses.mlflow}/api/2.0/mlflow/experiments/search",
    }[server]
    assert status(address) == 401
    assert status(address, "another") == 401
    assert status(address, PASSWORD) == 200


def test_notify_shows_the_password(remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrived = "events WHERE event = 'bessemer.text.arrived'"
    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
    with pytest.raises(ValueError, match=r"HTTP 401\)\. Set PREFECT_API_AUTH_STRING"):
        notify(remote.home, tmp_path)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", f"{USER}:{PASSWORD}")
    assert count(remote, "prefect", arrived) == 0
    notify(remote.home, tmp_path)
    deadline = time.monotonic() + 60
    while count(remote, "prefect", arrived) == 0:
        assert time.monotonic() < deadline, "the event was taken but never written"
        time.sleep(0.2)


def test_a_run_is_kept_in_postgresql_and_in_the_object_store(remote: Remote, tmp_path: Path) -> None:
    steps = ("pretrain.batches.steps=10", "sft.batches.steps=5", "dpo.batches.steps=5", "evaluate.answer_tokens=8")
    command = tiny.arguments(tiny.make_corpus(tmp_path / "corpus"), remote.home)
    settings = [f"--set={setting}" for setting in (*steps, f"execution.tracking_uri={remote.addresses.mlflow}")]
    ran = subprocess.run(
        [sys.executable, "-m", "flows.cli", *command, *settings, "--workers", "1"],
        cwd=ROOT,
        env={
            **os.environ,
            "PREFECT_API_AUTH_STRING": f"{USER}:{PASSWORD}",
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": PASSWORD,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert count(remote, "prefect", "flow_run WHERE state_type = 'COMPLETED'") == 1
    assert count(remote, "mlflow", "runs WHERE status = 'FINISHED'") > 1
    stored = {item.key.rsplit("/", 1)[-1] for item in bucket(remote.s3).objects.all()}
    assert "model.safetensors" in stored
    assert PASSWORD not in "".join(path.read_text() for path in (remote.home / "runs").glob("*.json"))


def count(remote: Remote, database: str, rows: str) -> int:
    connection = require_module("psycopg2").connect(f"postgresql://{remote.postgresql}/{database}")
    try:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT count(*) FROM {rows}")
            return int(cursor.fetchone()[0])
    finally:
        connection.close()
