"""A stage: a named, versioned function from artifacts to an artifact, built once per key and served ever after."""

import json
import resource
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar, get_type_hints

from pydantic import ValidationError

from tasks.mechanism.execution import Execution
from tasks.mechanism.identity import changed_fields, code_digest, stage_key
from tasks.mechanism.machine import environment
from tasks.mechanism.mirror import Mirror
from tasks.mechanism.observe import Bars, Reporter, Silent
from tasks.mechanism.progress import ConsoleProgress, console
from tasks.mechanism.sections import Sections
from tasks.mechanism.store import (
    Artifact,
    Manifest,
    Store,
    StoreDamage,
    explain_full_disk,
    list_files,
    now_utc,
)

__all__ = ["Artifact", "Input", "Outcome", "Runner", "Stage", "StageConfig", "StageRun", "build", "stage"]

Rebuild = Literal["on-code-change", "on-version"]


class StageConfig(Sections):
    """Base of every stage's config: frozen, complete, and also the form in the Prefect UI."""


C = TypeVar("C", bound=StageConfig)


class Input(Protocol):
    """Anything a stage may be given: identified by content alone."""

    @property
    def digest(self) -> str:
        """sha256 of the content, in hex."""

    @property
    def size_bytes(self) -> int:
        """How much there is to read, for forecasts."""


@dataclass(frozen=True)
class Stage(Generic[C]):
    """A stage as the decorator made it; calling it is a runner's business. `figures` are its most telling metrics."""

    name: str
    version: int
    rebuild: Rebuild
    config_class: type[C]
    function: Callable[..., None]
    code_digest: str
    figures: tuple[str, ...]

    def key(self, config: C, inputs: Mapping[str, Input]) -> str:
        """The identity of this call; for expensive stages the code is no part of it, only their version is."""
        digests = {name: value.digest for name, value in inputs.items()}
        code = self.code_digest if self.rebuild == "on-code-change" else ""
        return stage_key(self.name, self.version, changed_fields(config), digests, code)


def stage(
    name: str, *, version: int, rebuild: Rebuild = "on-code-change", figures: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], Stage[Any]]:
    """Declare a stage. Its second parameter's annotation is its config class; the others are its inputs.

    `figures` names those of its metrics that say best what went in and what came out, for summaries and comparisons.
    """

    def wrap(function: Callable[..., None]) -> Stage[Any]:
        config_class = get_type_hints(function)["cfg"]
        return Stage(name, version, rebuild, config_class, function, code_digest(function.__module__), figures)

    return wrap


class Runner(Protocol):
    """Who carries out the graph's stage calls: in-process, Prefect, or the plan that only looks."""

    def __call__(self, stage: Stage[C], config: C, label: str = "", /, **inputs: Input) -> Artifact:
        """The artifact of this call, served or built. `label` names it where a stage is called more than once."""


class StageRun:
    """What a stage is given to work with. Nothing in it may change the bytes that the stage writes, but by rounding."""

    def __init__(self, scratch: Path, execution: Execution, store: Store, observer: Reporter) -> None:
        self.scratch = scratch
        self.out = scratch / "out"
        self.execution = execution
        self.store = store
        self.metrics: dict[str, float] = {}
        self._observer = observer
        self._curve_path = scratch / "curve.jsonl"
        self._curve_is_ours = False
        shutil.rmtree(self.out, ignore_errors=True)  # of a build that was cut off; checkpoints lie beside it
        self.out.mkdir(parents=True)

    def metric(self, name: str, value: float) -> None:
        """Record a final figure: it goes to the manifest, to tracking and to the summary."""
        self.metrics[name] = float(value)
        self._observer.metric(name, float(value))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append a point to the stage's curves, durably enough to survive this process."""
        if not self._curve_is_ours:
            self.rewind(-1)  # what a crash left belongs to no checkpoint: a build that resumes rewinds to its own
        with self._curve_path.open("a") as stream:  # opened each time: 0.06 to 0.34 % of a step (benchmarks/RESULTS.md)
            stream.write(json.dumps({"step": step, **values}) + "\n")
        self._observer.log(step, values)

    def rewind(self, step: int) -> None:
        """Drop the points after `step`: a resumed stage will log them again."""
        kept = [line for line in self._curve_lines() if json.loads(line)["step"] <= step]
        self._curve_path.write_text("".join(kept))
        self._curve_is_ours = True
        self._observer.rewind(step)

    def _curve_lines(self) -> list[str]:
        if not self._curve_path.exists():
            return []
        lines = self._curve_path.read_text().splitlines(keepends=True)
        return [line for line in lines if line.endswith("}\n")]  # a crash may have left half a line

    def say(self, text: str) -> None:
        """Print one line for people."""
        console.print(f"  {text}", markup=False)  # [brackets] of other people's text are no markup
        self._observer.say(text)

    def progress(self, description: str, total: float, unit: str) -> Bars:
        """A progress bar over `total` units, with rate and time left, here and wherever the stage is watched."""
        shown = ConsoleProgress(description, total, unit)
        return Bars([shown, self._observer.progress(description, total, unit)])

    def keep_curve(self, path: Path) -> None:
        """Move the curves beside the manifest."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._curve_path.exists():
            self._curve_path.replace(path)


@dataclass(frozen=True)
class Outcome:
    """What became of one stage call. `note` says in words why it was rebuilt, or what to know about a served one."""

    label: str
    artifact: Artifact
    manifest: Manifest
    status: Literal["cached", "built"]
    note: str


def curve_path(store: Store, stage_name: str, key: str) -> Path:
    """Where the curves of a built stage lie: one JSON object a line, `step` and the logged values."""
    return store.keys / stage_name / f"{key}.curve.jsonl"


def was_made_with(manifest: Manifest, config: StageConfig) -> bool:
    """Whether the artifact was made with this config; a field that was added since had its default."""
    try:
        return type(config).model_validate(manifest.config) == config
    except ValidationError:
        return False


def lookup(store: Store, stage: Stage[Any], config: StageConfig, inputs: Mapping[str, Input]) -> Outcome | str:
    """The stored outcome of this call, its bytes verified; or, as a string, why there is none ("" = never built)."""
    manifest = store.find(stage.name, stage.key(config, inputs))
    if manifest is None:
        return ""
    try:
        artifact = store.open(manifest.digest)
    except StoreDamage as damage:
        return str(damage)
    note = ""
    if manifest.code_digest != stage.code_digest:
        note = f"code changed since {manifest.code_digest[:8]}; bump version to rebuild"
    return Outcome(stage.name, artifact, manifest, "cached", note)


def obtain(
    stage: Stage[C],
    config: C,
    inputs: Mapping[str, Input],
    execution: Execution,
    label: str = "",
    observer: Reporter | None = None,
) -> Outcome:
    """Serve the stage call from the store, or build it; two builders of one key take turns and the second is served.

    Raises:
        ValueError: the stage refused its input, or the disk is full. Nothing half-written is left.
    """
    store = Store(execution.home)
    mirror = Mirror(execution.mirror) if execution.mirror else None
    # Known before the lock, which is the key's: builders of different keys do not wait for each other.
    key = stage.key(config, inputs)
    label = label or stage.name
    with explain_full_disk(store.home, f"building {label}"), store.lock(stage.name, key):
        found = lookup(store, stage, config, inputs)
        # Only now the mirror: what lies here needs no request.
        if isinstance(found, str) and mirror and mirror.pull(store, stage.name, key):
            found = lookup(store, stage, config, inputs)
        if isinstance(found, Outcome):
            return Outcome(label, found.artifact, found.manifest, "cached", found.note)
        built = _build_now(store, stage, config, inputs, execution, label, observer or Silent(), found)
    if mirror:
        # Outside the lock: who waits for this key needs no upload.
        mirror.push(store, built.manifest)
    return built


def _build_now(
    store: Store,
    stage: Stage[C],
    config: C,
    inputs: Mapping[str, Input],
    execution: Execution,
    label: str,
    observer: Reporter,
    damage: str,
) -> Outcome:
    key = stage.key(config, inputs)
    scratch = store.scratch(stage.name, key)
    run = StageRun(scratch, execution, store, observer)
    # Monotonic: a clock that is set back while a stage is built must not make its cost negative.
    started, cpu_started = time.monotonic(), _cpu_seconds()
    stage.function(run, config, **inputs)
    assert list_files(run.out), f"stage {stage.name} wrote nothing"
    artifact = store.publish(run.out)
    manifest = Manifest(
        stage=stage.name,
        label=label,
        version=stage.version,
        key=key,
        digest=artifact.digest,
        config=config.model_dump(mode="json"),
        inputs={name: value.digest for name, value in inputs.items()},
        code_digest=stage.code_digest,
        metrics=run.metrics,
        seconds=time.monotonic() - started,
        cpu_seconds=_cpu_seconds() - cpu_started,
        input_bytes=sum(value.size_bytes for value in inputs.values()),
        size_bytes=artifact.size_bytes,
        created=now_utc(),
        environment=environment(execution),
    )
    run.keep_curve(curve_path(store, stage.name, key))  # before the manifest: a hit has its curve
    store.record(manifest)
    shutil.rmtree(scratch, ignore_errors=True)
    return Outcome(label, artifact, manifest, "built", f"rebuilt: {damage}" if damage else "")


def build(stage: Stage[C], config: C, inputs: Mapping[str, Input], execution: Execution, label: str = "") -> Artifact:
    """`obtain` for those who want the artifact only."""
    return obtain(stage, config, inputs, execution, label).artifact


def _cpu_seconds() -> float:
    """User and system CPU seconds of this process and of its finished children."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
