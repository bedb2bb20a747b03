"""A wheel, installed into what `make demo` installs and nothing more, does all that the README says can be typed."""

import gzip
import json
import sqlite3
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import yaml

from flows.recipe import preset_names
from flows.servers.processes import free_port
from tests.helpers import readme, tiny
from tests.helpers.environment import (
    ROOT,
    Environment,
    build_wheel,
    install_wheel,
    installed,
    make_environment,
    own_dependencies,
)
from tests.helpers.growing_text import paragraphs
from tests.helpers.up import stop, wait_for_servers

pytestmark = pytest.mark.slow
COMMANDS = readme.commands((ROOT / "README.md").read_text())
STEPS = (
    *("pretrain.batches.steps=6", "sft.batches.steps=4", "dpo.batches.steps=4"),
    *("evaluate.answer_tokens=4", "execution.workers=1"),
)
NEED_THE_HUB = "HuggingFaceFW/"
COMMAND_TIMEOUT_S = 1800  # a machine that others use; on two idle cores none takes two minutes


@dataclass(frozen=True)
class Checkout:
    """A folder in which somebody types what the README says; `.venv` and the home folder lie in it."""

    folder: Path
    environment: Environment
    wheel: Path

    def variables(self) -> dict[str, str]:
        return self.environment.variables(HOME=str(self.folder.parent), HF_HUB_OFFLINE="1")

    def type(self, command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.variables(),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """In a repository of somebody else's: its commit is none of ours."""
    root = tmp_path_factory.mktemp("wheel")
    folder = root / "somewhere"
    environment = make_environment(folder / ".venv", own_dependencies())
    wheel = build_wheel(root)
    install_wheel(environment, wheel)
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "theirs"], check=True)
    return Checkout(folder, environment, wheel)


def test_every_file_of_the_packages_is_shipped(checkout: Checkout) -> None:
    with zipfile.ZipFile(checkout.wheel) as archive:
        shipped = set(archive.namelist())
    for package in ("flows", "tasks", "model"):
        files = {path for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
        assert {str(path.relative_to(ROOT)) for path in files} <= shipped
    assert not [name for name in shipped if name.startswith(("tests", "benchmarks"))]


def test_what_the_project_does_not_ask_for_cannot_be_imported(checkout: Checkout) -> None:
    """Else the commands below would prove nothing: the tests' own environment has every extra."""
    script = "import flows, importlib.metadata as m; print(flows.__file__, *(d.name for d in m.distributions()))"
    where, *names = checkout.type(f'.venv/bin/python -c "{script}"').stdout.split()
    assert Path(where).is_relative_to(checkout.environment.site_packages)
    assert own_dependencies() < set(installed()), "nothing is left out"
    absent = checkout.type(".venv/bin/python -c 'import pytest'")
    assert "No module named 'pytest'" in absent.stderr
    assert "pytest" not in names and "torch" in names


def test_presets_are_found_from_an_empty_folder(checkout: Checkout) -> None:
    planned = checkout.type("mkdir empty && cd empty && bessemer plan demo --json")
    assert planned.returncode == 0, planned.stderr
    assert {row["status"] for row in json.loads(planned.stdout)["stages"]} == {"run"}


def make_presets_small(checkout: Checkout) -> None:
    """Every installed preset trains for a few steps on a little text, so that commands can be typed as they stand."""
    corpus = tiny.make_corpus(checkout.folder.parent / "library")
    sources = {name: str(corpus) for name in ("corpus", "sft_data", "preference_data")}
    small: dict[str, Any] = {"description": "A few steps on a little text.", **sources}
    for setting in (*tiny.SETTINGS, *STEPS):
        name, _, value = setting.partition("=")
        *sections, leaf = name.split(".")
        inner = small
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[leaf] = yaml.safe_load(value)
    for name in preset_names():
        preset = checkout.environment.site_packages / "flows" / "recipes" / f"{name}.yaml"
        preset.write_text(yaml.safe_dump({"name": name, **small}))


def make_data(checkout: Checkout) -> None:
    """What the README's user has: text under several names, of the same content, so that its models are built once."""
    text = [json.dumps({"text": text}) for text in paragraphs()[:203]]
    home, here = checkout.folder.parent, checkout.folder
    own, dated, news = text[:100], text[100:200], text[200:]
    folders = {home / "peps": own, home / "notes": own, here / "FOLDER": own}
    crawl = {here / "crawl/2026-01-01": dated, here / "crawl/2026-01-02": news}  # too little to train on again
    for folder, documents in (folders | crawl).items():
        folder.mkdir(parents=True)
        (folder / "text.jsonl").write_text("\n".join(documents))
    (here / "news.jsonl.gz").write_bytes(gzip.compress("\n".join(news).encode()))
    chats = [
        {"messages": [{"role": "user", "content": f"What is {w}?"}, {"role": "assistant", "content": f"{w} is {w}."}]}
        for w in topics
    ]
    pairs = [{"prompt": f"What is {w}?", "chosen": f"Here is {w} for you.", "rejected": f"No no {w}."} for w in topics]
    for name, rows in (("chats.jsonl", chats), ("FILE", chats), ("pairs.jsonl", pairs)):
        (here / name).with_suffix(".jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


@contextmanager
def dashboards(checkout: Checkout) -> Iterator[None]:
    """`bessemer up`, on ports that are free here."""
    ports = ["--prefect-port", str(free_port()), "--mlflow-port", str(free_port())]
    process = subprocess.Popen(
        [str(checkout.environment.folder / "bin" / "bessemer"), "up", *ports],
        cwd=checkout.folder,
        env=checkout.variables(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for_servers(checkout.folder / ".bessemer", process)
        yield
    finally:
        stop(process)


def challenger(checkout: Checkout) -> str:
    """The latest run that ended with a verdict and whose models are no champion: one that can be promoted."""
    home = checkout.folder / ".bessemer"
    champions = {json.loads(path.read_text())["run_id"] for path in (home / "champions").glob("*.json")}
    runs = [json.loads(path.read_text()) for path in (home / "runs").glob("*.json")]
    judged = [run for run in runs if any(stage["label"] == "gate" for stage in run["stages"])]
    return str(max((run["started"], run["run_id"]) for run in judged if run["run_id"] not in champions)[1])


def refusal(checkout: Checkout, command: str) -> str:
    """What is wrong with how a command ended; "" where it did what the README says."""
    typed = command.replace("--sft FILE", "--sft FILE.jsonl")
    if " RUN" in command:
        typed = command.replace("RUN", challenger(checkout))
    done = checkout.type(typed, stdin="What is a class?\n")
    if NEED_THE_HUB in command:  # nothing may reach outside here: it must say so in a sentence
        good = done.returncode == 2 and "Traceback" not in done.stderr and NEED_THE_HUB in done.stderr
    else:
        good = done.returncode == 0
    return "" if good else f"{typed}\n  ended with {done.returncode}: {done.stdout[-800:]}{done.stderr[-1500:]}"


def test_every_command_of_the_readme_works(checkout: Checkout) -> None:
    """`up` stays up while the others are typed; `notify` comes last, since what it starts has the size of the form."""
    make_presets_small(checkout)
    make_data(checkout)
    assert COMMANDS.count(readme.DEMO) == 1
    assert f"\t$(BIN)/{readme.DEMO}\n" in (ROOT / "Makefile").read_text(), "`make demo` does something else"
    first = checkout.type(readme.DEMO)
    assert first.returncode == 0, first.stderr
    servers = {command for command in COMMANDS if " up" in command}
    last = [command for command in COMMANDS if " notify " in command]
    assert servers and last
    others = [command for command in COMMANDS if command not in {readme.DEMO, *servers, *last}]
    with dashboards(checkout):
        refusals = [refusal(checkout, command) for command in (*others, *last)]
    assert not "\n".join(filter(None, refusals))


def test_the_commit_of_a_repository_around_us_is_not_recorded_as_ours(checkout: Checkout) -> None:
    with sqlite3.connect(checkout.folder / ".bessemer" / "mlflow" / "mlflow.db") as database:
        (runs,) = database.execute("SELECT count(*) FROM tags WHERE key = 'bessemer.run_id'").fetchone()
        (commits,) = database.execute("SELECT count(*) FROM tags WHERE key = 'mlflow.source.git.commit'").fetchone()
    assert runs > 0 and commits == 0
