"""What operating costs beside the work itself: orchestration, tracking, and new text against all text.

`python -m benchmarks.operate --quick` takes minutes on two cores; without it each figure is the median of more repeats.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.landings import landings
from benchmarks.report import Figure, conclude
from flows.recipe import Recipe, load_plan
from flows.run import execute
from tasks.mechanism.execution import Execution
from tasks.mechanism.runs import RunRecord
from tasks.mechanism.stage import StageRun, curve_path
from tasks.mechanism.store import Store
from tasks.track import Untracked, open_tracker
from tasks.track.tracker import StageObserver

ROOT = Path(__file__).resolve().parent.parent
CACHED_GOAL_S = 10.0
"""Of a fully cached run, however started: the watch must be able to look every minute."""
TRACKING_GOAL_S = 0.5
"""Per stage, in the run's own time."""
LOGGING_GOAL = 0.01
"""Of a training step of the smallest model that anyone trains."""


def tiny_recipe(folder: Path) -> Recipe:
    """The pipeline of the tests, on the documentation of a few standard modules."""
    from tests.helpers import tiny

    corpus = tiny.make_corpus(folder / "library")
    sources = {"corpus": str(corpus), "sft_data": str(corpus / "json"), "preference_data": str(corpus / "json")}
    return load_plan("demo", tiny.SETTINGS, sources).recipe


def wall_seconds(command: list[str], repeats: int) -> float:
    """Median wall time of a command in a process of its own, imports and all."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def cached_runs(recipe_file: Path, home: Path, repeats: int) -> list[Figure]:
    """Wall time of a run of which every stage is served: in-process, on its own Prefect server, on one that is up."""
    command = [sys.executable, "-m", "flows.cli", "run", str(recipe_file), "--home", str(home)]
    # Not timed: the databases of a new home cost once what no later run pays.
    wall_seconds([*command, "--no-tracking"], 1)  # makes Prefect's tables
    wall_seconds([*command, "--in-process"], 1)  # makes MLflow's
    found = {
        "in-process": wall_seconds([*command, "--in-process", "--no-tracking"], repeats),
        "in-process, tracked": wall_seconds([*command, "--in-process"], repeats),
        "ephemeral Prefect, tracked": wall_seconds(command, repeats),
    }
    with dashboards(home):
        found["Prefect and MLflow servers"] = wall_seconds(command, repeats)
    return [Figure(f"cached run, {name}", s, CACHED_GOAL_S, "lower", " s") for name, s in found.items()]


@contextmanager
def dashboards(home: Path) -> Iterator[None]:
    """`bessemer up` for as long as this lasts."""
    from flows.addresses import live_addresses
    from flows.servers.processes import free_port

    command = [sys.executable, "-m", "flows.cli", "up", "--home", str(home)]
    command += ["--prefect-port", str(free_port()), "--mlflow-port", str(free_port())]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 180
        while live_addresses(home) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("bessemer up did not start")
            time.sleep(0.3)
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


def tracking_per_stage(recipe: Recipe, home: Path, repeats: int) -> Figure:
    """Seconds that MLflow adds to a stage of a cached run, start and finish of the run included; interleaved."""
    plain, tracked, stages = [], [], 1
    execution = Execution(home=home, workers=1, threads=1)
    for _ in range(repeats + 1):  # the first pair warms up
        started = time.perf_counter()
        stages = len(execute(recipe, execution, Untracked()).stages)
        plain.append(time.perf_counter() - started)
        started = time.perf_counter()
        execute(recipe, execution, open_tracker(execution))
        tracked.append(time.perf_counter() - started)
    added = statistics.median(tracked[1:]) - statistics.median(plain[1:])
    return Figure("tracking, per stage of a cached run", added / stages, TRACKING_GOAL_S, "lower", " s")


def logging_share(record: RunRecord, store: Store, folder: Path) -> Figure:
    """CPU time of logging one step, curve file and tracker, as a share of a training step of the tiny model.

    The step is timed by the training loop itself, so that imports and evaluations do not count as steps.
    """
    stage = record.stage("pretrain")
    assert stage
    manifest = store.find("pretrain", stage.key)
    assert manifest
    points = [json.loads(line) for line in curve_path(store, "pretrain", stage.key).read_text().splitlines()]
    rate = statistics.median(point["tokens_per_s"] for point in points if "tokens_per_s" in point)
    step_s = manifest.config["batches"]["batch_tokens"] / rate
    run = StageRun(folder / "logging", Execution(home=folder), store, StageObserver("pretrain"))
    values = {name: value for name, value in points[0].items() if name != "step"}
    steps = 5000
    started = time.process_time()
    for step in range(steps):
        run.log(step, values)
    share = (time.process_time() - started) / steps / step_s
    return Figure("metrics logging, share of a training step", share, LOGGING_GOAL, "lower")


NAMES = ("cached", "tracking", "logging", "landings")


def main() -> None:
    """Measure what is asked for and conclude."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few repeats")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="measure these figures only")
    options = parser.parse_args()
    repeats = 3 if options.quick else 9
    os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe, home = tiny_recipe(folder), folder / "home"
        if set(options.only) - {"landings"}:
            record = execute(recipe, Execution(home=home, workers=1, threads=1), Untracked())
        if "logging" in options.only:
            figures.append(logging_share(record, Store(home), folder))
        if "tracking" in options.only:
            figures.append(tracking_per_stage(recipe, home, repeats))
        if "cached" in options.only:
            recipe_file = folder / "recipe.yaml"
            recipe_file.write_text(recipe.model_dump_json())  # JSON is YAML
            figures += cached_runs(recipe_file, home, repeats)
        if "landings" in options.only:
            figures += landings(folder, 1000 if options.quick else 5000)
    conclude(figures)


if __name__ == "__main__":
    main()
