"""What the documents name is there: files and folders, whatever was moved meanwhile."""

import re
from pathlib import Path

import pytest

from tests.test_architecture import ROOT

FOLDERS = ("flows", "tasks", "model", "tests", "benchmarks", "deployments", "docs", "examples")
DOCUMENTS = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *ROOT.glob("*/*/*.md"))
    if path.name not in ("LOG.md", "CHANGELOG.md")  # they say what was so on a day, and what is no longer
)
NAMED = re.compile(rf"(?<![\w/.-])(?:{'|'.join(FOLDERS)})/[\w./-]*[\w/]")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_that_a_document_names_exists(document: Path) -> None:
    """A name in capitals, such as tasks/ROOM/NAME.py, stands for many."""
    named = {name for name in NAMED.findall(document.read_text()) if not re.search(r"/[A-Z]+(\.py)?(/|$)", name)}
    assert not [name for name in sorted(named) if not (ROOT / name).exists()]
