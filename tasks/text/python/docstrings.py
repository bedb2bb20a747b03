"""Docstrings taken apart: the summary, parameters, result and exceptions, in the three styles in common use.

NumPy style (underlined section titles), Google style (`Args:` and indentation) and Sphinx fields (`:param x:`).
"""

import re
from dataclasses import dataclass, field

_UNDERLINE = re.compile(r"^\s*[-=~^]{3,}\s*$")
_GOOGLE_TITLE = re.compile(r"^([A-Z][A-Za-z ]{2,30})::?\s*$")
_GOOGLE_ITEM = re.compile(r"^\s*\*{0,2}`{0,2}(\w+)`{0,2}\s*(?:\(([^)]*(?:\([^)]*\))?[^)]*)\))?\s*:(?:\s+(\S.*))?$")
_NUMPY_ITEM = re.compile(r"^(\*{0,2}\w+(?:\s*,\s*\*{0,2}\w+)*)\s*(?::\s*(.*))?$")
_SPHINX_PARAMETER = re.compile(r"^:param(?:eter)?\s+(?:[^:]*\s)?\*{0,2}(\w+):\s*(.*)$")
_SPHINX_RETURNS = re.compile(r"^:returns?:\s*(.*)$")
_SPHINX_RAISES = re.compile(r"^:raises?\s+`?([\w.]+)`?:\s*(.*)$")
_SECTIONS = {
    "args": "parameters",
    "arguments": "parameters",
    "keyword args": "parameters",
    "parameters": "parameters",
    "return": "returns",
    "returns": "returns",
    "raises": "raises",
}
_GOOGLE_SECTIONS = {
    *_SECTIONS.values(),
    "example",
    "examples",
    "note",
    "notes",
    "shape",
    "attributes",
    "yields",
    "usage",
}
# Not after one capital (an initial), nor after abbreviations that documentation is full of.
_SENTENCE_END = re.compile(r"(?<![A-Z])(?<!e\.g)(?<!i\.e)(?<!etc)(?<!vs)(?<!cf)[.!?](?=\s|$)")


@dataclass(frozen=True)
class Parameter:
    """A documented parameter or exception; `type` is "" where none is given."""

    name: str
    type: str
    text: str


@dataclass
class Docstring:
    """The parts of a docstring, each as running text of whole sentences; "" and empty lists where absent."""

    summary: str = ""
    details: str = ""
    parameters: list[Parameter] = field(default_factory=list)
    returns: str = ""
    raises: list[Parameter] = field(default_factory=list)


def parse_docstring(doc: str) -> Docstring:
    """Take a cleaned docstring apart."""
    lines = doc.splitlines()
    sections = _sections(lines)
    paragraphs = [plain(paragraph) for paragraph in re.split(r"\n\s*\n", "\n".join(sections.pop("", [])).strip())]
    found = Docstring(paragraphs[0], paragraphs[1] if len(paragraphs) > 1 else "")
    found.parameters = _items(sections.get("parameters", []))
    found.raises = _items(sections.get("raises", []))
    found.returns = _returns(sections.get("returns", []))
    _add_sphinx_fields(found, lines)
    return found


def plain(text: str) -> str:
    """Running text: one line, double backquotes single, no backslashes of reStructuredText, no footnote marks."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"``([^`]*)``", r"`\1`", text)
    return re.sub(r"\s*\[\d+\]_", "", text).replace("\\ ", "").replace("\\*", "*")


def first_sentence(text: str) -> str:
    """The first sentence of running text, its full stop included; all of it if there is none."""
    match = _SENTENCE_END.search(text)
    return text[: match.end()] if match else text


def _sections(lines: list[str]) -> dict[str, list[str]]:
    """Lines by section; "" holds what precedes the first title or field, unknown titles keep their own name."""
    sections: dict[str, list[str]] = {"": []}
    title = ""
    skip = False
    for number, line in enumerate(lines):
        following = lines[number + 1] if number + 1 < len(lines) else ""
        google = _GOOGLE_TITLE.match(line)
        if skip:
            skip = False
        elif line.strip() and _UNDERLINE.match(following) and not line.startswith(" "):
            title, skip = _section_name(line), True
        # At first only a known title: any other line that ends in a colon is prose.
        elif google and (title or _section_name(google[1]) in _GOOGLE_SECTIONS):
            title = _section_name(google[1])
        elif title == "" and line.startswith((":param", ":return", ":raise", ":type", ":rtype", ">>>", ".. ")):
            title = "fields"
        else:
            sections.setdefault(title, []).append(line)
    return sections


def _section_name(title: str) -> str:
    name = title.strip().rstrip(":").lower()
    return _SECTIONS.get(name, name or "?")


def _up_to_example(lines: list[str]) -> list[str]:
    """The lines that are not blank, up to a doctest or a directive, which no item contains."""
    end = next((i for i, line in enumerate(lines) if line.lstrip().startswith((">>>", ".. "))), len(lines))
    return [line for line in lines[:end] if line.strip()]


def _items(lines: list[str]) -> list[Parameter]:
    """The items of a section: a head at the least indentation, a description indented under it or behind a colon."""
    filled = _up_to_example(lines)
    if not filled:
        return []
    margin = min(len(line) - len(line.lstrip()) for line in filled)
    blocks: list[list[str]] = []
    for line in filled:
        if len(line) - len(line.lstrip()) == margin:
            blocks.append([line[margin:]])
        elif blocks:
            blocks[-1].append(line.strip())
    return [item for item in map(_item, blocks) if item is not None]


def _item(block: list[str]) -> Parameter | None:
    """An item from its lines: NumPy's head over an indented text, else Google's `name (type): text`."""
    google = _GOOGLE_ITEM.match(block[0])
    numpy = _NUMPY_ITEM.match(block[0].replace("`", ""))
    if numpy and len(block) > 1 and (google is None or " : " in block[0]):
        name = numpy[1].split(",")[0].strip().lstrip("*")
        return Parameter(name, plain(numpy[2] or ""), plain(" ".join(block[1:])))
    if google and (google[3] or google[2] or len(block) > 1):
        return Parameter(google[1], plain(google[2] or ""), plain(" ".join([google[3] or "", *block[1:]])))
    return None


def _returns(lines: list[str]) -> str:
    """What is returned, as text: under NumPy's `name : type`, or Google's `type: text`."""
    items = _items(lines)
    if items and items[0].text:
        return items[0].text
    filled = _up_to_example(lines)
    if not filled:
        return ""
    if len(filled) > 1 and filled[1].startswith((" ", "\t")) and not filled[0].startswith(" "):
        return plain(" ".join(filled[1:]))
    text = plain(" ".join(filled))
    head, colon, rest = text.partition(": ")
    return rest if colon and len(head) < 60 and rest else text  # longer before the colon, it is a sentence and no type


def _add_sphinx_fields(found: Docstring, lines: list[str]) -> None:
    """Fill in what `:param x:`, `:returns:` and `:raises E:` say, continuation lines included."""
    joined: list[str] = []
    for line in lines:
        if line.startswith(":"):
            joined.append(line)
        elif joined and line.startswith(" ") and line.strip():
            joined[-1] += f" {line.strip()}"
        elif joined and joined[-1]:
            joined.append("")
    for entry in joined:
        if match := _SPHINX_PARAMETER.match(entry):
            found.parameters.append(Parameter(match[1], "", plain(match[2])))
        elif match := _SPHINX_RETURNS.match(entry):
            found.returns = found.returns or plain(match[1])
        elif match := _SPHINX_RAISES.match(entry):
            found.raises.append(Parameter(match[1], "", plain(match[2])))
