"""What every measurement of the data stages needs: a folder, text, and peers in environments of their own."""

import json
import subprocess
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.data_corpus import real_texts

PEERS = Path(__file__).parent / "peers"
# An environment each: datatrove asks for xxhash < 4 and trafilatura < 1.12, where ours are 4.1 and 2.3.
PACKAGES = {
    "sketches": ("datasketch>=2", "rensa>=0.5"),
    "datatrove": ("datatrove[processing]>=0.10", "spacy", "nltk", "orjson"),
}


@dataclass(frozen=True)
class Bench:
    """What every measurement needs: where to work, which text, and how much of it (1 for --quick, else more)."""

    folder: Path
    peers: Path
    corpus: str
    size: int

    def texts(self, count: int, characters: int = 3300) -> list[str]:
        """Real documents of about this length."""
        return real_texts(self.corpus, self.folder, characters, count)

    def peer(self, environment: str, script: str, *arguments: str) -> Any:
        """Run a peer's script in its environment; returns the JSON that it wrote."""
        python = _environment(self.peers / environment, PACKAGES[environment])
        result = self.folder / f"{script}.json"
        command = [str(python), str(PEERS / script), *arguments, str(result)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        return json.loads(result.read_text())


def _environment(folder: Path, packages: Sequence[str]) -> Path:
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
        (folder / "complete").touch()  # last: an installation that was cut off is made anew
    return python
