"""Each example does what its first line says, as somebody types it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


def run_example(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"examples.{name}", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by those that train: what is the same is built once, as for whoever tries both."""
    return tmp_path_factory.mktemp("examples")


def test_own_text_ends_with_a_verdict_and_an_answer(folder: Path) -> None:
    done = run_example("own_text", folder)
    assert "Verdict:" in done.stderr
    answer = re.fullmatch(r"What is assert\? '(.+)'\n", done.stdout)
    assert answer, done.stdout


def test_own_judge_drops_the_text_that_shouts(tmp_path: Path) -> None:
    done = run_example("own_judge", tmp_path)
    texts = len(list((tmp_path / "text").iterdir()))
    assert f"dropped by capitals: 1 of {texts} documents" in done.stdout


def test_own_loss_is_trained_with(folder: Path) -> None:
    done = run_example("own_loss", folder)
    records = [path.read_text().replace(" ", "") for path in (folder / ".bessemer" / "runs").glob("*.json")]
    assert [record for record in records if '"loss_type":"squared_hinge"' in record and '"completed"' in record]
    assert "reward accuracy" in done.stderr
