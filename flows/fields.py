"""The fields of nested settings by name: which there are, what each may hold, and a sentence for each that is wrong."""

import difflib
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

LONGEST_SHOWN = 120
"""Characters of a value that a sentence repeats: enough to recognise it."""
MOST_EXPLAINED = 8
# What pydantic calls these, of a model and of a dataclass.
_UNKNOWN_FIELD = ("extra_forbidden", "unexpected_keyword_argument")
_NO_SECTION = ("model_type", "dataclass_type")
_BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
_LENGTHS = {"min_length": "at least", "max_length": "at most"}
# Two levels are enough to recognise a value, and keep a few YAML aliases, each of ten of another, from filling memory.
_short_repr = reprlib.Repr()
_short_repr.maxlevel = 2
_short_repr.maxstring = _short_repr.maxother = LONGEST_SHOWN


def shown(value: Any) -> str:
    """A value as a sentence repeats it: as Python writes it, cut to what one recognises it by."""
    try:
        return shorten(_short_repr.repr(value))
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "a number of thousands of digits"


def shorten(text: str) -> str:
    """The text, or its beginning and end where it is longer than a sentence can hold."""
    half = LONGEST_SHOWN // 2
    return text if len(text) <= LONGEST_SHOWN else f"{text[:half]}...{text[-half:]}"


def explain(error: ValidationError, kind: Any, section: str = "") -> str:
    """One sentence per wrong field: its name, what was found, its bounds or the nearest valid name.

    `section` is where `kind` stands among the settings that a user names; "" where it is all of them.
    """
    issues = error.errors()
    lines = [_explain_one(issue, kind, section) for issue in issues[:MOST_EXPLAINED]]
    more = len(issues) - MOST_EXPLAINED
    return " ".join(lines + ([f"{more} more fields are wrong."] if more > 0 else []))


def _explain_one(issue: Mapping[str, Any], kind: Any, section: str) -> str:
    path = [str(part) for part in issue["loc"]]
    name = shorten(".".join([section, *path] if section else path))
    names = field_names(kind, section)
    if issue["type"] in _UNKNOWN_FIELD:
        return f"{name} is not a field of the recipe.{did_you_mean(name, names)}"
    if issue["type"] in _NO_SECTION:
        inside = next(field for field in names if field.startswith(f"{name}." if name else ""))
        return f"{name} = {shown(issue['input'])}: it is a section; set its fields, such as {inside}."
    text = issue["msg"].removeprefix("Value error, ").rstrip(".")
    # A whole section does not fit together: the message names its fields.
    found = name if isinstance(issue["input"], Mapping) else f"{name} = {shown(issue['input'])}"
    whole = f"{found or kind.__name__.lower()}: {text[0].lower()}{text[1:]}."
    return " ".join(filter(None, [whole, _describe(kind, path, text)]))


def field_names(kind: Any, section: str = "") -> list[str]:
    """Every field as it is written after --set: `name`, `dpo.beta`, `pretrain.model.num_layers`, ..."""
    names = []
    for name, info in _fields(kind).items():
        whole = f"{section}.{name}" if section else name
        names += field_names(info.annotation, whole) if _fields(info.annotation) else [whole]
    return names


def _fields(kind: Any) -> dict[str, FieldInfo]:
    """The fields of a section; {} of what is none."""
    found: dict[str, FieldInfo] = getattr(kind, "__pydantic_fields__", {})
    return found


def _describe(kind: Any, path: Sequence[str], message: str) -> str:
    """What the field is, and what it may hold as far as `message` does not say so."""
    info, inner = _find(kind, path)
    if info is None:
        return ""
    limits = [limit for limit in _limits(inner) if limit not in message]
    allowed = f"It must be {' and '.join(limits)}." if limits else ""
    return " ".join(filter(None, [info.description, allowed]))


def _find(kind: Any, path: Sequence[str]) -> tuple[FieldInfo | None, FieldInfo | None]:
    """The innermost field on the path, and what bounds the value there: of an item of a list, what bounds items."""
    info = None
    for position, part in enumerate(path):
        inner = _fields(kind).get(part)
        if inner is None:
            return info, _item(info) if info and position else None
        info, kind = inner, inner.annotation
    return info, info


def _item(info: FieldInfo) -> FieldInfo | None:
    """What bounds the items of a list: the items of all our lists are alike."""
    items = get_args(info.annotation)
    found = [part for part in getattr(items[0], "__metadata__", ()) if isinstance(part, FieldInfo)] if items else []
    return found[0] if found else None


def _limits(info: FieldInfo | None) -> Iterator[str]:
    """The ends of `It must be ...`, one for each bound of the field."""
    if info is None:
        return
    if get_origin(info.annotation) is Literal:
        *most, last = map(repr, get_args(info.annotation))
        yield f"{', '.join(most)} or {last}" if most else last
    for bound in info.metadata:
        for name, words in _BOUNDS.items():
            if hasattr(bound, name):
                yield f"{words} {getattr(bound, name)}"
        for name, words in _LENGTHS.items():
            if getattr(bound, name, None) is not None:
                yield f"{words} {getattr(bound, name)} long"
        if getattr(bound, "pattern", None):
            yield f"of the pattern {bound.pattern}"


def did_you_mean(name: str, valid: Sequence[str]) -> str:
    """The nearest name: one that ends in the same field and begins in the same section before any other."""
    first, leaf = name.split(".")[0], name.split(".")[-1]
    alike = [v for v in valid if v.split(".")[-1] == leaf]
    inside = [v for v in alike if v.split(".")[0] == first]
    near = difflib.get_close_matches(name, inside, n=1, cutoff=0.5) or (inside or alike)[:1]
    near = near or difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f" Did you mean {near[0]}?" if near else ""
