"""Tracking: what a run leaves in MLflow, and that MLflow's absence never costs a run anything."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from flows.servers.processes import free_port
from model.decoding.sampling import CONVERSATION
from model.vocabulary.tokenizer import Tokenizer
from tasks.mechanism.execution import Execution
from tasks.models.chat import ChatModel
from tasks.track import Untracked, delivery, open_tracker
from tasks.track.connection import Connection, connect, local_tracking_uri
from tasks.track.registry import EXAMPLE
from tests.helpers.inference import make_model, random_model
from tests.helpers.mechanism_stages import CountConfig, DoubleConfig, count, double
from tests.helpers.running_stages import HandOverConfig, hand_over
from tests.helpers.track import ToyRun, client_of, nested_runs, unsent
from tests.helpers.training import make_tokenizer


def test_pipeline_run_carries_every_stage_built_or_cached(execution: Execution) -> None:
    parents = []
    for _ in range(2):
        run = ToyRun(execution, open_tracker(execution))
        numbers = run.call(count, CountConfig(limit=50), "pretrain_like")
        run.call(double, DoubleConfig(), "double", numbers=numbers.artifact)
        run.end()
        parents.append(run.record.tracking_run_id)
    client = client_of(execution)
    built, cached = (client.get_run(parent) for parent in parents)
    assert built.data.params == cached.data.params
    assert built.data.params["pretrain.optimizer.learning_rate"] == "0.01"
    assert built.data.params["dpo.beta"] == "0.1"
    for run in (built, cached):
        assert run.info.status == "FINISHED"
        assert run.data.metrics["pretrain_like/numbers"] == 50
        assert run.data.metrics["double/characters"] == cached.data.metrics["double/characters"]
        curve = client.get_metric_history(run.info.run_id, "pretrain_like/value")
        assert {m.step: m.value for m in curve} == {n: float(n) for n in range(50)}
        assert [d.dataset.digest for d in run.inputs.dataset_inputs] == [("ab" * 32)[:36]]
    assert built.data.metrics["run/stages_built"] == 2
    assert cached.data.metrics["run/stages_cached"] == 2
    assert nested_runs(client, parents[1]) == {}
    assert unsent(execution) == []


def test_built_stage_has_its_own_run_with_the_whole_curve(execution: Execution) -> None:
    run = ToyRun(execution, open_tracker(execution))
    outcome = run.call(count, CountConfig(limit=100), "count")
    run.end()
    client = client_of(execution)
    nested = nested_runs(client, run.record.tracking_run_id)["count"]
    assert nested.info.status == "FINISHED"
    assert nested.data.params == {"limit": "100", "word": "n"}
    assert nested.data.tags["digest"] == outcome.artifact.digest
    assert [m.step for m in client.get_metric_history(nested.info.run_id, "value")] == list(range(100))


def test_runs_of_a_recipe_share_an_experiment_that_survives_deletion(execution: Execution) -> None:
    first = ToyRun(execution, open_tracker(execution))
    first.end()
    client = client_of(execution)
    experiment = client.get_experiment_by_name("toy")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    second = ToyRun(execution, open_tracker(execution))
    second.end("failed")
    info = client.get_run(second.record.tracking_run_id).info
    assert (info.experiment_id, info.status) == (experiment.experiment_id, "FAILED")


def test_models_are_versions_with_lineage_and_are_copied_once(execution: Execution) -> None:
    client = client_of(execution)
    digests: dict[int, str] = {}
    for limit, expected in ((10, 1), (11, 2), (10, 1)):
        run = ToyRun(execution, open_tracker(execution))
        outcome = run.call(count, CountConfig(limit=limit), "pretrain")
        digests[limit] = outcome.artifact.digest
        run.tracker.judged(outcome.artifact.digest, "champion" if limit == 10 else "challenger")
        run.end()
        version = client.get_model_version_by_alias("toy", "base")
        assert int(version.version) == expected
        assert version.tags["digest"] == outcome.artifact.digest
        assert version.tags["source.corpus"] == "ab" * 32
        assert unsent(execution) == []
    assert client.get_model_version_by_alias("toy", "champion").tags["digest"] == digests[10]
    assert client.get_model_version_by_alias("toy", "challenger").tags["digest"] == digests[11]
    assert len(client.search_model_versions("name = 'toy'")) == 2


def test_killed_run_is_completed_by_the_next(execution: Execution) -> None:
    dead = ToyRun(execution, Untracked())
    tracker = open_tracker(execution)
    script = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from tasks.mechanism.execution import Execution
from tasks.track import open_tracker
from tests.helpers.mechanism_stages import *
from tests.helpers.track import *
execution = Execution(home=Path({str(execution.home)!r}), workers=1, threads=1)
run = ToyRun(execution, open_tracker(execution))
run.call(count, CountConfig(limit=20), "count")
print(run.record.tracking_run_id, flush=True)
os.kill(os.getpid(), 9)
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert found.returncode == -9, found.stderr
    killed = found.stdout.strip()
    assert len(unsent(execution)) == 2
    ToyRun(execution, tracker).end()
    client = client_of(execution)
    assert client.get_run(killed).info.status == "FAILED"
    assert client.get_run(killed).data.metrics["count/numbers"] == 20
    curve = client.get_metric_history(nested_runs(client, killed)["count"].info.run_id, "value")
    assert [m.step for m in curve] == list(range(20))
    assert unsent(execution) == []
    assert dead.record.tracking_run_id == ""


class MlflowServer:
    """A real MLflow server on loopback that can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        folder.mkdir()

    def start(self) -> None:
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"),
            *("--artifacts-destination", str(self.folder / "artifacts")),
        ]
        environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PATH": "/usr/bin:/bin", "HOME": str(self.folder)}
        log = (self.folder / "log.txt").open("a")
        self.process = subprocess.Popen(
            command, env=environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
        )
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                requests.get(f"{self.uri}/health", timeout=2).raise_for_status()
                return
            except OSError:
                time.sleep(0.3)
        raise AssertionError((self.folder / "log.txt").read_text())

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path / "server")
    server.start()
    yield server
    server.stop()


def test_server_that_is_down_is_refused_before_any_work(execution: Execution) -> None:
    away = execution.model_copy(update={"tracking_uri": f"http://127.0.0.1:{free_port()}"})
    with pytest.raises(ValueError, match=r"does not answer.*--no-tracking"):
        open_tracker(away)


@pytest.mark.parametrize("uri", ["https://me:secret@mlflow.example.org", "postgresql://me:secret@db/mlflow"])
def test_password_in_the_address_is_refused_and_not_repeated(execution: Execution, uri: str) -> None:
    with pytest.raises(ValueError, match="holds a password") as refusal:
        open_tracker(execution.model_copy(update={"tracking_uri": uri}))
    assert "secret" not in str(refusal.value)


@pytest.mark.slow
def test_server_that_goes_away_costs_nothing_and_is_caught_up_with(
    execution: Execution, server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = execution.model_copy(update={"tracking_uri": server.uri})
    run = ToyRun(there, open_tracker(there))
    run.call(count, CountConfig(limit=30), "pretrain")
    time.sleep(6)  # some points are sent live
    server.stop()
    run.call(count, CountConfig(limit=40), "dpo")
    started = time.monotonic()
    run.end()
    assert time.monotonic() - started < 60
    assert len(unsent(there)) == 2
    server.start()
    ToyRun(there, open_tracker(there)).end()
    client = client_of(there)
    parent = client.get_run(run.record.tracking_run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["dpo/numbers"] == 40
    for label, limit in (("pretrain", 30), ("dpo", 40)):
        nested = nested_runs(client, run.record.tracking_run_id)[label]
        history = client.get_metric_history(nested.info.run_id, "value")
        assert [m.step for m in history] == list(range(limit))
    assert client.get_model_version_by_alias("toy", "dpo").tags["form"] == "dpo"
    assert unsent(there) == []


ASK = """
import json, sys
import mlflow
uri, home = sys.argv[1:]
mlflow.set_tracking_uri(uri)
model = mlflow.pyfunc.load_model("models:/toy@dpo")
question = [{"messages": [{"role": "user", "content": "What does it do?"}]}]
answers = model.predict(question, params={"max_tokens": 4})
streamed = "".join(model.predict_stream(question, params={"max_tokens": 4}))
print(json.dumps({"answers": answers, "streamed": streamed}))
"""


@pytest.mark.slow
def test_registered_model_answers_by_pyfunc_and_when_served(execution: Execution, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    tokens = Tokenizer.load(tokenizer.path)
    model = make_model(tmp_path / "model", random_model(vocab_size=tokens.vocab_size), tokenizer)
    run = ToyRun(execution, open_tracker(execution))
    outcome = run.call(hand_over, HandOverConfig(), "dpo", model=model)
    run.end()
    assert unsent(execution) == []
    question = [{"role": "user", "content": "What does it do?"}]
    # Drawn with the usual seed, which asking without one takes too.
    expected = "".join(ChatModel.load(outcome.artifact.path).stream(question, CONVERSATION, 4))

    uri = local_tracking_uri(execution.home)
    asked = subprocess.run(
        [sys.executable, "-c", ASK, uri, str(execution.home)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout.splitlines()[-1]) == {"answers": [expected], "streamed": expected}

    version = client_of(execution).get_model_version_by_alias("toy", "dpo")
    files = [path.suffix for path in Path(version.source).rglob("*")]
    assert not {".pkl", ".pickle", ".pt", ".bin"} & set(files)
    assert ".safetensors" in files
    assert served_answer(uri, tmp_path, {"inputs": EXAMPLE, "params": {"max_tokens": 4}}) != ""


def served_answer(uri: str, folder: Path, question: dict[str, Any]) -> str:
    """What `mlflow models serve` answers to a POST on /invocations."""
    port = free_port()
    command = [*(sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", "models:/toy@dpo")]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    log = (folder / "serve.log").open("w")
    server = subprocess.Popen(
        command,
        env={**os.environ, "MLFLOW_TRACKING_URI": uri, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        cwd=folder,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and server.poll() is None:
            with contextlib.suppress(requests.ConnectionError):
                if requests.get(f"http://127.0.0.1:{port}/ping", timeout=5).ok:
                    reply = requests.post(f"http://127.0.0.1:{port}/invocations", json=question, timeout=60)
                    assert reply.ok, reply.text
                    return str(reply.json()["predictions"][0])
            time.sleep(0.5)
        raise AssertionError((folder / "serve.log").read_text())
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_importing_the_tracker_protocol_does_not_import_mlflow() -> None:
    code = "import sys, json, tasks.track, flows.run; print(json.dumps('mlflow' in sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if "ModuleNotFoundError" in found.stderr and "flows" in found.stderr:
        pytest.skip("stages are missing")
    assert json.loads(found.stdout) is False, found.stderr


def digest_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def test_runs_that_begin_at_once_may_name_the_same_data_sets(execution: Execution) -> None:
    """Each from a client of its own, again and again: MLflow lets only one of them add a data set."""
    runs = 4
    connections = [connect(execution) for _ in range(runs)]
    client = connections[0].client
    experiment = client.create_experiment("together")
    gate = threading.Barrier(runs)

    def begin(connection: Connection, number: int) -> list[tuple[str, str]]:
        run_id = connection.client.create_run(experiment).info.run_id
        gate.wait()
        delivery.log_datasets(connection, run_id, [delivery.dataset("corpus", "here", digest_of(number))])
        inputs = connection.client.get_run(run_id).inputs.dataset_inputs
        return [(found.dataset.name, found.dataset.digest) for found in inputs]

    for number in range(5):
        with ThreadPoolExecutor(runs) as pool:
            told = list(pool.map(begin, connections, [number] * runs))
        assert told == [[("corpus", digest_of(number)[:36])]] * runs
