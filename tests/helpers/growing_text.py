"""Text that arrives in landings: parts of Python's reference, then a dump that no model of it should learn from."""

import codecs
import json
from pathlib import Path
from pydoc_data.topics import topics

from flows.recipe import Recipe, load_plan
from tests.helpers.tiny import MODEL

PARAGRAPH_CHARACTERS = 250
# The model reads as much of any text: so more text helps, and a dump of noise costs.
SETTINGS = (
    *MODEL,
    "filter.languages=[]",
    "filter.min_stop_words=0",
    "pack.validation_share=0.4",
    "pretrain.batches.steps=150",
    "pretrain.loop.evaluate_every=0",
    "sft.batches.batch_tokens=512",
    "sft.batches.steps=6",
    "dpo.batches.steps=6",
    "evaluate.answer_tokens=4",
    "limits.int8=1",
    "limits.fp4=1",
)


def paragraphs() -> list[str]:
    """The help topics of Python in pieces of some hundred characters, those of one topic apart from each other."""
    pieces: list[str] = []
    for text in topics.values():
        piece = ""
        for paragraph in text.split("\n\n"):
            piece += paragraph + "\n\n"
            if len(piece) > PARAGRAPH_CHARACTERS:
                pieces.append(piece)
                piece = ""
    return [piece for start in range(7) for piece in pieces[start::7]]


def landings() -> list[list[str]]:
    """Four deliveries of documents: a little text, more of it, most of it, and twice as much in an unknown tongue."""
    text = paragraphs()
    first, second = len(text) // 32, len(text) // 12
    foreign = [codecs.encode(piece, "rot13") for piece in text]
    return [text[:first], text[first:second], text[second:], [*foreign, *(piece[::-1] for piece in foreign)]]


def land(folder: Path, name: str, documents: list[str]) -> None:
    """Put a delivery into the folder at once: whoever looks sees all of it or nothing."""
    aside = folder / f".{name}"
    aside.mkdir(parents=True)
    lines = [json.dumps({"text": text}) for text in documents]
    (aside / "documents.jsonl").write_text("\n".join(lines) + "\n")
    aside.rename(folder / name)


def make_recipe(folder: Path, *settings: str) -> Recipe:
    """The recipe of a folder `text` that grows, with questions and pairs that do not."""
    chats = [
        {"messages": [{"role": "user", "content": f"What is {w}?"}, {"role": "assistant", "content": f"{w} is {w}."}]}
        for w in topics
    ]
    pairs = [{"prompt": f"What is {w}?", "chosen": f"Here is {w} for you.", "rejected": f"No no {w}."} for w in topics]
    for name, rows in (("chats", chats), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    sections = {
        "name": "growing",
        "corpus": str(folder / "text"),
        "sft_data": str(folder / "chats.jsonl"),
        "preference_data": str(folder / "pairs.jsonl"),
    }
    return load_plan("demo", [*SETTINGS, *settings], sections).recipe
