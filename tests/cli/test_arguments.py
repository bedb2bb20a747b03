"""Whatever is typed after any verb ends in an exit code and a paragraph, never in a stack trace."""

import argparse
import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from flows.cli.main import EXIT_USER_ERROR, build_parser, main
from flows.fields import field_names
from flows.recipe import Recipe, load_plan
from tasks.mechanism.runs import RunRecord, save_run
from tasks.mechanism.store import Store

EXAMPLES = 15  # of each verb: 210 commands, most of them refused within milliseconds
RUN = "demo-20260102-030405-1f2e"
# What a parser, a codec or a system call says to itself; nobody who typed a wrong argument can use it.
INTERNAL = re.compile(r"Traceback|codec can't|^embedded null|object has no attribute|Errno|NoneType|not subscriptable")
ALLOWED = {0, 1, EXIT_USER_ERROR}
# Appended, for the last one counts: what each verb must refuse before any work, or may only look at.
ENDS: dict[str, tuple[str, ...]] = {
    "run": ("--in-process", "--no-tracking", "--set", "execution.tracking_uri=none", "--set", "corpus=nowhere.txt"),
    "plan": ("--set", "corpus=nowhere.txt"),
    "backfill": ("--plan",),
    "up": ("--prefect-port", "0"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with a home, a run in it that built nothing, and files of many kinds."""
    folder = tmp_path_factory.mktemp("place")
    save_run(Store(folder / "home"), _record(folder))
    (folder / "folder").mkdir()
    (folder / "empty.yaml").touch()
    (folder / "folder.yaml").mkdir()
    (folder / "latin.yaml").write_bytes("name: Übergröße".encode("latin-1"))
    (folder / "list.yaml").write_text("[1, 2]")
    (folder / "keys.yaml").write_text("1: 2\npretrain: {3: 4}\nexecution: 5\n")
    (folder / "text.txt").write_text("A text.")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "damaged").mkdir()
    (folder / "damaged" / "FORMAT").mkdir()
    with contextlib.chdir(folder):
        yield folder


def _record(folder: Path) -> RunRecord:
    return RunRecord(
        run_id=RUN,
        recipe=load_plan("demo", ["corpus=nowhere.txt"]).recipe.model_dump(mode="json"),
        command="bessemer run",
        home=str(folder / "home"),
        status="completed",
        started="2026-01-02T03:04:05+00:00",
        forms={"base": "pretrain", "sft": "sft"},
        roles={"start": "base", "candidate": "sft", "served": "sft"},
    )


def run(*arguments: str) -> tuple[int, str]:
    """(exit code, what was printed) of a command."""
    printed = io.StringIO()
    with pytest.raises(SystemExit) as exit_, contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        main(arguments)
    code = exit_.value.code
    assert isinstance(code, int)
    return code, printed.getvalue()


def verb_parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each verb."""
    (verbs,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(verbs.choices)


PARSERS = verb_parsers()
NUMBERS = st.one_of(
    st.integers().map(str), st.floats().map(str), st.sampled_from(["-1", "0", "1e999", "9" * 5000, "nan", "1_0", "٣"])
)
PATHS = st.sampled_from(
    [
        *("folder", "folder.yaml", "empty.yaml", "latin.yaml", "list.yaml", "keys.yaml", "text.txt", "loop", "damaged"),
        *(
            "nowhere",
            "text.txt/below",
            "folder/*",
            "folder/**x",
            "[",
            "crawl/{date}",
            "folder/{date:%d}",
            "{2026-99-01}",
        ),
        *("~nobody-of-this-name/x", "nosuch://x", "memory://nothing", "a" * 300, "folder/" * 900, "/dev/full"),
    ]
)
# Beside the arguments that a shell passes: text that stands for all of the disk, or for somebody's server, is left out.
TEXTS = st.text(max_size=40).filter(lambda text: not text.strip().startswith(("/", "~", "..")) and "://" not in text)
ODD = st.one_of(
    TEXTS, st.sampled_from(["", "\0", "\udcff", "\ud800x", "-", "--", "=", "x" * 100_000, RUN, "demo", RUN[:6]])
)
YAML = st.one_of(
    NUMBERS,
    TEXTS,
    st.sampled_from(
        [
            *(
                "[en",
                "{a: 1",
                "[" * 5000,
                "!!bool x",
                '!!int ""',
                "!!timestamp x",
                "2026-02-30",
                "&a [*a]",
                "&a {b: *a}",
            ),
            *(
                "'",
                "!!python/object:os.system {}",
                '"\\ud800"',
                '"\\0"',
                "null",
                "true",
                "{1: 2}",
                "{a: {b: c}}",
                "[[]]",
            ),
            *("[1, 2, 3]", "{? [a] : b}", "0x" + "f" * 5000, ".inf", "-.nan", "a" * 300, "[1.5, 2.5]", "%", "@", "`"),
            "[" + ", ".join([f"&a{n} [" + ", ".join([f"*a{n - 1}" if n else "x"] * 9) + "]" for n in range(9)]) + "]",
        ]
    ),
)
SECTIONS = sorted({name.rpartition(".")[0] for name in field_names(Recipe)} | {"execution", "depth", "description"})
FIELDS = st.one_of(
    st.sampled_from(
        [*field_names(Recipe), *SECTIONS, "execution.workers", "execution.processes", "execution.strategy"]
    ),
    st.sampled_from(["", ".", "..", "pretrain.", ".name", "name.x", "pretrain.model.x.y", "a." * 3000, "é", "\n"]),
)
SETTINGS = st.one_of(ODD, st.tuples(FIELDS, YAML).map("=".join))


def values_of(action: argparse.Action) -> st.SearchStrategy[str]:
    """Strings for one argument of a verb: some that it takes, most not."""
    choices = [st.sampled_from([str(choice) for choice in action.choices])] if action.choices else []
    if action.dest == "settings":
        return SETTINGS
    if action.dest == "home":
        return st.one_of(st.just("home"), PATHS, st.sampled_from(["\0", "\udcff"]))
    return st.one_of(*choices, ODD, PATHS, NUMBERS)


@st.composite
def commands(draw: st.DrawFn, verb: str) -> list[str]:
    """A verb with some of its options and arguments, in any order."""
    words: list[list[str]] = []
    for action in PARSERS[verb]._actions:
        if not action.option_strings:
            words += [[draw(values_of(action))]] * draw(st.sampled_from([1, 1, 1, 0, 2]))
        elif action.nargs == 0:
            words += [[action.option_strings[-1]]] * draw(st.sampled_from([0, 0, 0, 1]))
        else:
            for _ in range(draw(st.sampled_from([0, 0, 1]))):
                words.append([action.option_strings[-1], draw(values_of(action))])
    words = [word for word in draw(st.permutations(words)) if word[0] not in ("--help", "--debug")]
    return [verb, "--home", "home", *(part for word in words for part in word), *ENDS.get(verb, ())]


def check(arguments: list[str]) -> None:
    """Fail unless the command ends as any mistake should."""
    code, printed = run(*arguments)
    assert code in ALLOWED, printed
    assert not INTERNAL.search(printed), printed
    assert len(printed) < 5000, "a paragraph is read, not scrolled"
    if code == EXIT_USER_ERROR:
        assert f"bessemer {arguments[0]}" in printed or "bessemer: error" in printed


@pytest.mark.parametrize("verb", sorted(PARSERS))
def test_whatever_is_typed_ends_in_a_paragraph(place: Path, verb: str) -> None:
    # Generate only: shrinking a failure tries a command hundreds of times, and each builds the whole parser.
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    )
    @given(commands(verb))
    def all_end_well(arguments: list[str]) -> None:
        save_run(Store(place / "home"), _record(place))  # gc may have taken it
        check(arguments)

    all_end_well()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["plan", "--set", "filter.languages=[en"],
            r"filter\.languages: its value, '\[en', is not valid YAML at line 1",
        ),
        (["plan", "--set", "filter.min_words=!!bool x"], r"'!!bool x', is not valid YAML"),
        (["plan", "--set", "filter.blocked_words=['']"], r"word 1 of 1 is ''"),
        (["plan", "--set", "name=" + "a" * 300], r"name = 'a+\.\.\.a+': .* It must be at most 128 long"),
        (["plan", "--set", "execution=3"], r"execution = 3: it is a section; .* such as execution\.home"),
        (["plan", "--set", "execution.worker=3"], r"Did you mean execution\.workers\?"),
        (["plan", "--corpus", "~nobody-of-this-name/x"], r"there is no user ~nobody-of-this-name"),
        (["plan", "--corpus", "a" * 300], r"File name too long\. Check that the path"),
        (["plan", "--corpus", "folder/**x"], r"folder/\*\*x: not a glob"),
        (["plan", "latin.yaml"], r"latin\.yaml is not UTF-8 \(.* at byte 6\)"),
        (["show", "--home", "loop"], r"home folder 'loop' cannot be found"),
        (["show", "--home", "damaged"], r"FORMAT: Is a directory"),
        (["show", "a\0b"], r"the argument 'a\\x00b' is not UTF-8 text, or has a NUL in it"),
        (["show", "\udcff"], r"the argument '\\udcff' is not UTF-8 text"),
        (["up", "--mlflow-port", "99999"], r"99999 found, a whole number from 1 to 65535 expected"),
        (["gc", "--keep", "-1"], r"-1 found, a whole number from 0"),
        (["chat", "--temperature", "nan"], r"nan found, 0 to 100 expected"),
    ],
)
def test_mistakes_are_explained(place: Path, arguments: list[str], expected: str) -> None:
    code, printed = run(*arguments)
    assert code == EXIT_USER_ERROR
    assert re.search(expected, printed), printed


def test_arguments_of_a_verb_stand_in_any_order(place: Path) -> None:
    save_run(Store(place / "home"), _record(place))
    orders = [
        ["filter", RUN, "--set", "filter.min_words=20", "--home", "home"],
        ["filter", "--set", "filter.min_words=20", RUN, "--home", "home"],
        ["--home", "home", "--set", "filter.min_words=20", "filter", RUN],
    ]
    printed = {run("inspect", *order) for order in orders}
    assert len(printed) == 1
    assert "did not come as far as ingest" in printed.pop()[1]
