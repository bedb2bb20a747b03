"""The commands that the README names, read out of its tables and blocks: a changed README is tested as it is."""

import re

DEMO = "bessemer run demo"
"""What `make demo` ends in, once it has made the environment."""
_STARTS = re.compile(r"(\.venv/bin/)?bessemer |make demo\b|cp ")
_SPAN = re.compile(r"`([^`]+)`")


def commands(readme: str) -> list[str]:
    """Each command once, in the order of the text; options that stand beside one in a table make it again with them.

    The environment is taken to be active: `.venv/bin/bessemer` and `bessemer` are one command.
    """
    found: list[str] = []
    fenced = False
    for line in readme.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced:
            found += _typed(line)
        elif line.startswith("|"):
            found += _in_row(line)
    named = [DEMO if command == "make demo" else command.removeprefix(".venv/bin/") for command in found]
    return list(dict.fromkeys(named))


def _typed(line: str) -> list[str]:
    """The command of a line in a block, without its comment; a line of a program's output has none."""
    text = re.split(r"\s{2,}#|\s{3,}", line.strip())[0]
    return [text] if _STARTS.match(text) else []


def _in_row(row: str) -> list[str]:
    spans = _SPAN.findall(row)
    typed = [span for span in spans if _STARTS.match(span) and "&&" not in span]
    return typed + [f"{typed[0]} {option}" for option in spans if typed and option.startswith("--")]
