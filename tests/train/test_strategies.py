"""`bessemer run --processes 2 --strategy ...`: the curves of one process, on this machine; else a refusal."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import require_module
from tests.helpers import tiny
from tests.helpers.listening import is_loopback, listening_until_end
from tests.helpers.training import LOSS_NATS, assert_same_but_for_rounding, full_curve

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
TRAINING_STAGES = ("pretrain", "sft", "dpo")
# AdamW, which all strategies have; fp32, where one process and two differ by rounding only.
SETTINGS = [
    f"{stage}.{setting}" for stage in TRAINING_STAGES for setting in ("optimizer.kind=adamw", "precision=fp32")
] + [
    "pretrain.batches.steps=12",
    "sft.batches.steps=4",
    "dpo.batches.steps=4",
    "evaluate.answers=0",
    "evaluate.preference_pairs=8",
    "evaluate.validation_tokens=512",
    "execution.threads=1",
]


def bessemer(corpus: Path, home: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`bessemer run`, in this process's place: without Prefect and MLflow."""
    return subprocess.run(
        command(corpus, home, *options), capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}
    )


def command(corpus: Path, home: Path, *options: str) -> list[str]:
    """Its command line."""
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    arguments = tiny.arguments(corpus, home, *settings, "--in-process", "--no-tracking", "--json", *options)
    return [sys.executable, "-m", "flows.cli", *arguments]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_corpus(tmp_path_factory.mktemp("corpus") / "library")


@pytest.fixture(scope="module")
def one(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a run on one process."""
    home = tmp_path_factory.mktemp("one") / "home"
    ran = bessemer(corpus, home)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return home


@pytest.fixture
def prepared(one: Path, tmp_path: Path) -> Path:
    """A home that has the tokens, and no model."""
    home = shutil.copytree(one, tmp_path / "home")
    for stage in TRAINING_STAGES:
        shutil.rmtree(home / "keys" / stage)
    return home


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "deepspeed"])
def test_two_processes_give_the_curves_of_one_and_stay_on_this_machine(
    corpus: Path, one: Path, prepared: Path, tmp_path: Path, strategy: str
) -> None:
    if strategy == "deepspeed":
        require_module("deepspeed")
    asked = command(corpus, prepared, "--processes", "2", "--strategy", strategy)
    with (tmp_path / "stdout").open("w") as stdout, (tmp_path / "stderr").open("w") as stderr:
        ran = subprocess.Popen(asked, stdout=stdout, stderr=stderr, text=True, cwd=ROOT)
        listening = listening_until_end(ran)
    assert ran.returncode == 0, (tmp_path / "stderr").read_text()[-3000:]
    assert listening, "the processes did not speak to each other"
    assert not [address for address in listening if not is_loopback(address)]
    report = json.loads((tmp_path / "stdout").read_text())
    built = {stage["label"] for stage in report["stages"] if stage["status"] == "built"}
    assert built >= set(TRAINING_STAGES)
    assert_same_but_for_rounding(full_curve(one), full_curve(prepared))
    for stage in ("sft", "dpo"):  # each begins with what the stage before it left; some of their figures are counts
        losses = [[point["loss"] for point in full_curve(home, stage)] for home in (one, prepared)]
        assert losses[0] == pytest.approx(losses[1], rel=0, abs=LOSS_NATS)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--strategy", "fsdp2"], "strategy is 'fsdp2' but processes is 1"),
        (["--strategy", "deepspeed", "--processes", "2"], "needs DeepSpeed, which is not installed"),
        (["--set", "execution.device=cuda", "--processes", "2"], "device is 'cuda' but torch sees no CUDA device"),
        (["--launcher", "ray", "--processes", "2"], "engine_address is '' and engine is 'processes'"),
    ],
)
def test_what_cannot_be_had_is_refused(
    corpus: Path, prepared: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    (tmp_path / "deepspeed.py").write_text("raise ImportError('as if it were not installed')")
    ran = bessemer(corpus, prepared, *options, PYTHONPATH=str(tmp_path), CUDA_VISIBLE_DEVICES="")
    assert ran.returncode != 0 and words in " ".join(ran.stderr.split()), ran.stderr[-3000:]
    assert not (prepared / "keys" / "pretrain").exists()
