"""Documentation that Python source adds to compiled objects by calls: `add_newdoc("numpy", "dot", ...)` in NumPy and
SciPy, `add_docstr(torch.abs, ...)` in PyTorch.

Nothing is run: the few expressions that build the texts (constants, their sums, dictionaries, `str.format`, and torch's
two helpers) are worked out here.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

_CALLS = ("add_newdoc", "add_docstr", "_add_docstr", "add_docstr_all")
_OPENING = re.compile(r"^\s*(?:\w+\.)*\w+(\(.*?\))[ \t]*(?:->[^\n]*)?\n(?:[ \t]*--[ \t]*\n)?", re.S)
_ANNOTATION = re.compile(r":\s*[\w.\[\] |]+")

Value = str | dict[str, str]


@dataclass(frozen=True)
class AddedDoc:
    """A text added to a compiled object; `name` is dotted, `signature` "" if unknown, `of_class` for methods."""

    name: str
    of_class: bool
    signature: str
    doc: str
    line: int


class _Blank(dict[str, str]):
    """Placeholders that other files define become empty."""

    def __missing__(self, key: str) -> str:
        return ""


def added_docs(tree: ast.Module, module: str) -> Iterator[AddedDoc]:
    """The texts that calls at the top level of `module` (dotted, public) add."""
    known: dict[str, Value] = {}
    for node in tree.body:
        target = node.targets[0].id if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) else ""
        value = node.value if isinstance(node, ast.Assign | ast.Expr) else None
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in _CALLS:
            yield from _added(value, value.func.id, target, module, known)
        elif target and value is not None and (found := _evaluate(value, known)) is not None:
            known[target] = found


def _added(call: ast.Call, function: str, target: str, module: str, known: dict[str, Value]) -> Iterator[AddedDoc]:
    *places, last = call.args or [ast.Constant(None)]
    member = ""
    if isinstance(last, ast.Tuple) and len(last.elts) == 2:
        member, last = f".{_name_of(last.elts[0])}", last.elts[1]
    doc = _evaluate(last, known)
    names = [_name_of(place) for place in places]
    if not isinstance(doc, str) or not names or not all(names):
        return
    if function == "add_docstr_all":
        # torch/_tensor_docs.py names only the method.
        name = f"torch.Tensor.{names[-1]}"
    # torch.special assigns what it documents: `entr = _add_docstr(_special.special_entr, ...)`.
    elif target:
        name = f"{module}.{target}"
    else:
        # PyTorch gives the object (`torch.abs`), NumPy a private module and a name: then the public one of this file
        # counts.
        dotted = names[0] if len(names) == 1 and "." in names[0] else f"{module}.{names[-1]}"
        name = dotted + member
    if any(part.startswith("_") for part in name.split(".")):
        return
    signature = ""
    while opening := _OPENING.match(doc):  # NumPy's newer texts repeat it after a line of dashes
        signature = _ANNOTATION.sub("", opening[1])
        doc = doc[opening.end() :]
    of_class = bool(member) or function == "add_docstr_all"
    yield AddedDoc(name, of_class, " ".join(signature.split()), doc, call.lineno)


def _name_of(node: ast.expr) -> str:
    """`torch.abs` or "abs" as text; "" for anything else."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_name_of(node.value)}.{node.attr}"
    return ""


def _evaluate(node: ast.expr, known: dict[str, Value]) -> Value | None:
    """The text or dictionary of texts that an expression stands for; None where it needs running."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _evaluate(node.left, known), _evaluate(node.right, known)
        return left + right if isinstance(left, str) and isinstance(right, str) else None
    if isinstance(node, ast.Dict):
        pairs = [(_evaluate(k, known), _evaluate(v, known)) for k, v in zip(node.keys, node.values) if k is not None]
        return {k: v for k, v in pairs if isinstance(k, str) and isinstance(v, str)}
    return _evaluate_call(node, known) if isinstance(node, ast.Call) else None


def _evaluate_call(node: ast.Call, known: dict[str, Value]) -> Value | None:
    function = _name_of(node.func).rpartition(".")[2]
    given = [_evaluate(argument, known) for argument in node.args]
    if function == "merge_dicts":
        return {key: text for part in given if isinstance(part, dict) for key, text in part.items()}
    if function == "parse_kwargs" and given and isinstance(given[0], str):
        # As torch._torch_docs.parse_kwargs does: a section for each argument, indented by four.
        sections = [section.strip() for section in re.split(r"\n {4}(?!\s)", given[0])]
        return {section.split(" ")[0]: section for section in sections if section}
    if function == "format" and isinstance(node.func, ast.Attribute):
        template = _evaluate(node.func.value, known)
        values = _Blank()
        for keyword in node.keywords:
            found = _evaluate(keyword.value, known)
            values.update(found if isinstance(found, dict) else {keyword.arg or "": found or ""})
        try:
            return template.format_map(values) if isinstance(template, str) else None
        except (ValueError, IndexError, AttributeError):  # a brace that is no placeholder
            return None
    return None
