"""Questions and answers by rules from documented Python objects: what it does, its parameters, its result, its errors.

Every answer is a sentence of the documentation, or follows from a signature; the rules only choose and phrase. All
choices follow from hashes of names, so the same source gives the same questions wherever it is read.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import xxhash

from tasks.text.python.docstrings import Docstring, Parameter, first_sentence, parse_docstring
from tasks.text.python.pydocs import Entry

MAX_ANSWER_CHARACTERS = 420
"""About 120 tokens at the demo's vocabulary."""
_MIN_SENTENCE_CHARACTERS = 18
_MAX_SENTENCE_CHARACTERS = 240
_NAMED_PARAMETERS = 6
_DESCRIBED_PARAMETERS = 3
_GREETING_EVERY = 40
_LITERAL_EVERY = 3
"""Signatures and defaults are asked by themselves for one object in three: nobody can answer them for a new one."""

Aspect = Literal["purpose", "parameters", "parameter", "default", "returns", "raises", "call"]

_VERBS = frozenset(
    """accept acquire add adjust aggregate align allocate alter append apply assert assign attach attempt begin bind
    block build calculate call cancel cast change check choose clean clear clip close collect combine compare compile
    complete compute configure connect construct convert copy count create decode decorate define delete deserialize
    detect determine disable display divide download draw drop dump emit enable encode ensure enter estimate evaluate
    execute expand export extend extract fetch fill filter find finish fit flatten flush force format gather generate
    get give group handle hold implement import increment indicate infer initialize insert inspect install instantiate
    integrate invoke issue iterate join list load locate lock log look lower make map mark merge minimize modify move
    multiply normalize notify obtain open override pack pad parse partition pause perform pick plot pop post predict
    prepare preprocess print process produce propagate provide push put query raise randomize read receive reconstruct
    record reduce refine refresh register release reload remove rename render reorder replace report represent request
    rescale reset reshape resize resolve restore resume retrieve return reverse rewrite rotate run sample save scale
    schedule search select send serialize serve set shift show shuffle shut shutdown simplify skip solve sort specify
    split start stop store submit subtract sum swap switch synchronize take test track train transform translate
    transpose traverse truncate try turn unpack unregister update upload use validate verify visit wait walk warn wrap
    write yield""".split()  # noqa: SIM905
)
_MARKUP = re.compile(r"::|>>>|\.\. |\{|\}|\||__\w|\\|_`|`_|<[a-z/]|=====|-----|\*\*|https?:")

_OPTIONAL = re.compile(r",? (?:optional|defaults?)\b")

_PURPOSE_QUESTIONS = (
    "What does {object} do?", "What is {object} for?", "Explain {object}.", "What is the purpose of {object}?",
    "Tell me about {object}.", "Can you describe {object}?", "What can I use {object} for?", "What is {object}?",
    "I found {object} in some code. What does it do?", "Describe {object} in a sentence.",
)  # fmt: skip
_PARAMETERS_QUESTIONS = (
    "Which parameters does {object} take?", "What are the parameters of {object}?",
    "What arguments can I pass to {object}?", "Describe the arguments of {object}.",
)  # fmt: skip
_PARAMETER_QUESTIONS = (
    "What is the parameter `{parameter}` of {object}?", "What does `{parameter}` mean in {object}?",
    "In {object}, what is `{parameter}`?", "Explain the argument `{parameter}` of {object}.",
)  # fmt: skip
_DEFAULT_QUESTIONS = (
    "What is the default of `{parameter}` in {object}?", "What happens if I leave out `{parameter}` in {object}?",
    "Does `{parameter}` of {object} have a default value?",
)  # fmt: skip
_RETURNS_QUESTIONS = (
    "What does {object} return?", "What is the return value of {object}?", "What do I get back from {object}?",
    "What is the result of {object}?",
)  # fmt: skip
_RAISES_QUESTIONS = (
    "Which exceptions does {object} raise?", "What errors can {object} raise?", "When does {object} raise an error?",
)  # fmt: skip
_CALL_QUESTIONS = (
    "How do I call {object}?", "What is the signature of {object}?", "Show me how to call {object}.",
)  # fmt: skip
_QUESTIONS: dict[Aspect, tuple[str, ...]] = {
    "purpose": _PURPOSE_QUESTIONS,
    "parameters": _PARAMETERS_QUESTIONS,
    "parameter": _PARAMETER_QUESTIONS,
    "default": _DEFAULT_QUESTIONS,
    "returns": _RETURNS_QUESTIONS,
    "raises": _RAISES_QUESTIONS,
    "call": _CALL_QUESTIONS,
}
_FOLLOW_UPS: dict[Aspect, tuple[str, ...]] = {
    "purpose": ("What does it do?",),
    "parameters": ("Which parameters does it take?", "What arguments does it take?", "And its parameters?"),
    "parameter": ("What is `{parameter}`?", "And what does `{parameter}` mean?", "What about `{parameter}`?"),
    "default": ("What is the default of `{parameter}`?", "Does `{parameter}` have a default?"),
    "returns": ("What does it return?", "And what do I get back?", "What is its return value?"),
    "raises": ("Which errors can it raise?", "Can it raise an exception?"),
    "call": ("How do I call it?", "What is its signature?", "Show me a call."),
}
_GREETINGS = (
    ("Hello!", "Hello! Ask me about a function, class or method of a Python library."),
    ("Hi, can you help me?", "Yes. Name a function, class or method of a Python library and I will explain it."),
    ("Who are you?", "I am a small language model. I have read the documentation of Python's libraries."),
    ("What can you do?", "I can say what functions and classes do, which parameters they take and what they return."),
)


@dataclass(frozen=True)
class Exchange:
    """A question about one aspect of an object, the same question once the object is known, and the answer."""

    aspect: Aspect
    question: str
    follow_up: str
    answer: str


@dataclass(frozen=True)
class Dialogue:
    """Exchanges about one object; `library` is the top package."""

    name: str
    library: str
    turns: tuple[tuple[str, str], ...]


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def pick(options: Sequence[str], *key: str) -> str:
    """One of `options`, decided by the hash of `key`."""
    return options[_hash("\0".join(key)) % len(options)]


def exchanges(entry: Entry) -> list[Exchange]:
    """Everything that can be asked about an object and answered well from its documentation."""
    if entry.kind not in ("class", "function", "method"):
        return []
    parsed = parse_docstring(entry.doc)
    purpose = purpose_of(entry, parsed)
    if not purpose:
        return []
    target = f"`{object_name(entry)}`"
    found = [_exchange(entry, "purpose", "", purpose)]
    described = [p for p in parsed.parameters if p.name in _parameter_names(entry.signature) and sentence(p.text)]
    if described:
        found.append(_exchange(entry, "parameters", "", _parameters_answer(target, entry.signature, described)))
        found += [
            _exchange(entry, "parameter", p.name, _parameter_answer(p)) for p in described[:_DESCRIBED_PARAMETERS]
        ]
    for name, value in list(_defaults(entry.signature).items())[:1]:
        found.append(_exchange(entry, "default", name, f"The default of `{name}` is `{value}`."))
    if returns := sentence(parsed.returns):
        found.append(_exchange(entry, "returns", "", f"{target} returns {lower_first(returns)}"))
    if raises := [f"`{r.name}`: {text}" for r in parsed.raises[:2] if (text := sentence(r.text))]:
        found.append(_exchange(entry, "raises", "", f"It can raise {' '.join(raises)}"))
    if entry.signature and len(entry.signature) <= 100 and len(_parameter_names(entry.signature)) > 0:
        found.append(_exchange(entry, "call", "", f"Call it as `{object_name(entry)}{entry.signature}`."))
    return [e for e in found if len(e.answer) <= MAX_ANSWER_CHARACTERS]


def dialogues(name: str, found: Sequence[Exchange]) -> Iterator[Dialogue]:
    """Each exchange about the object `name` by itself, and one conversation of several turns if there is enough."""
    library = name.split(".")[0]
    for exchange in found:
        if exchange.aspect not in ("call", "default") or _hash(exchange.question) % _LITERAL_EVERY == 0:
            yield Dialogue(name, library, ((exchange.question, exchange.answer),))
    if len(found) >= 3:
        first, *others = found
        order = sorted(others, key=lambda e: _hash(name + e.question))
        turns = [(first.question, first.answer), *((e.follow_up, e.answer) for e in order[:3])]
        if _hash(name) % _GREETING_EVERY == 0:
            turns.insert(0, _GREETINGS[len(name) % len(_GREETINGS)])
        yield Dialogue(name, library, tuple(turns))


def _exchange(entry: Entry, aspect: Aspect, parameter: str, answer: str) -> Exchange:
    question = pick(_QUESTIONS[aspect], entry.name, aspect, parameter)
    follow_up = pick(_FOLLOW_UPS[aspect], entry.name, aspect, parameter, "follow-up")
    words = {"object": _reference(entry, aspect + parameter), "parameter": parameter}
    return Exchange(aspect, question.format(**words), follow_up.format(**words), answer)


def object_name(entry: Entry) -> str:
    """`norm`, `Ridge`, `DataFrame.groupby`: the name without its module."""
    parts = entry.name.split(".")
    return ".".join(parts[-2:]) if entry.kind == "method" else parts[-1]


def _reference(entry: Entry, key: str) -> str:
    """How a question names the object: always with its library, as many names occur in several."""
    name, library = f"`{object_name(entry)}`", entry.name.split(".")[0]
    possessive = f"{library}'" if library.endswith("s") else f"{library}'s"
    forms = (
        f"{name} in {library}",
        f"{possessive} {name}",
        f"the {library} {entry.kind} {name}",
        f"{name} ({library})",
    )
    return pick(forms, entry.name, key, "reference")


def purpose_of(entry: Entry, parsed: Docstring) -> str:
    """What the object is or does, as a sentence about it; "" where the documentation does not say so plainly."""
    said = sentence(parsed.summary)
    # Such a summary only points elsewhere.
    if not said or said.split()[0] in ("See", "Same", "Like", "Alias", "Internal:", "Deprecated", "Like"):
        return ""
    name = f"`{object_name(entry)}`"
    first, _, rest = said.partition(" ")
    if first.lower() in _VERBS and entry.kind != "class":
        answer = f"{name} {third_person(first.lower())} {_second_verb(rest)}"
    elif first.lower() in _THIRD_PERSON:
        answer = f"{name} {first.lower()} {rest}"
    elif first in ("A", "An", "The") and entry.kind == "class":
        answer = f"{name} is {first.lower()} {rest}"
    else:
        answer = f"The documentation of {name} says: {said}"
    details = sentence(parsed.details)
    return f"{answer} {details}" if details and len(answer) + len(details) < 300 else answer


def _second_verb(rest: str) -> str:
    """ "compute and return x" needs both verbs changed."""
    words = rest.split(" ", 2)
    if len(words) == 3 and words[0] in ("and", "or") and words[1] in _VERBS:
        return f"{words[0]} {third_person(words[1])} {words[2]}"
    return rest


def third_person(verb: str) -> str:
    """`return` -> `returns`, `fetch` -> `fetches`, `apply` -> `applies`."""
    if verb.endswith(("s", "x", "z", "ch", "sh")):
        return f"{verb}es"
    if verb.endswith("y") and verb[-2] not in "aeou":
        return f"{verb[:-1]}ies"
    return f"{verb}s"


_THIRD_PERSON = frozenset(third_person(verb) for verb in _VERBS)


def sentence(text: str) -> str:
    """The first sentence, if it is one that can be said aloud: of sensible length, without markup; else ""."""
    found = first_sentence(text).strip()
    if not found or _MARKUP.search(found) or found.count("`") % 2:
        return ""
    if found[-1] not in ".!?":
        found = f"{found.rstrip(':;, ')}."
    is_prose = found[0].isalpha() or found[0] in "`'\"0123456789"
    return found if is_prose and _MIN_SENTENCE_CHARACTERS <= len(found) <= _MAX_SENTENCE_CHARACTERS else ""


def lower_first(text: str) -> str:
    """The text with a small first letter, unless its first word is a name or an acronym."""
    first = text.split()[0]
    return text[0].lower() + text[1:] if first[1:].islower() or len(first) == 1 else text


def _parameters_answer(target: str, signature: str, described: Sequence[Parameter]) -> str:
    every = [f"`{name}`" for name in _parameter_names(signature)]
    names = every[:_NAMED_PARAMETERS]
    listed = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
    takes = "takes" if len(names) == len(every) else f"takes {len(every)} parameters, among them"
    answer = f"{target} {takes} {listed}."
    for parameter in described[:_DESCRIBED_PARAMETERS]:
        more = f" `{parameter.name}`: {sentence(parameter.text)}"
        if len(answer) + len(more) <= MAX_ANSWER_CHARACTERS:
            answer += more
    return answer


def _parameter_answer(parameter: Parameter) -> str:
    kind = _OPTIONAL.split(parameter.type.replace("`", "").replace("*", ""))[0].strip().rstrip(",")
    text = sentence(parameter.text)
    if kind and len(kind) <= 40 and not _MARKUP.search(kind):
        return f"`{parameter.name}` ({kind}): {text}"
    return f"`{parameter.name}`: {text}"


def _parameter_names(signature: str) -> list[str]:
    return re.findall(r"(?:^\(|, )\*{0,2}(\w+)", signature)


def _defaults(signature: str) -> dict[str, str]:
    """Parameter -> default, for defaults that are short literals."""
    return dict(re.findall(r"(\w+)=(-?[\w.]+|'[^',()]*')(?=[,)])", signature))


def rejected_answer(exchange: Exchange, sibling: Exchange | None) -> str:
    """A worse answer: the one that fits a sibling, or the true one broken off, by turns."""
    # Two kinds of mistake: fluent but about something else, and right but broken off after 30 to 60 % of its words.
    if sibling is not None and sibling.answer != exchange.answer and _hash(exchange.question) % 2:
        return sibling.answer
    words = exchange.answer.split(" ")
    kept = len(words) * (3 + _hash(exchange.answer) % 4) // 10
    return " ".join(words[: max(1, kept)]).rstrip(".,:;")
