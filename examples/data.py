"""What the examples learn from: Python's help topics as text, and questions about them in the layouts of the README."""

import json
from pathlib import Path
from pydoc_data.topics import topics

from flows.recipe import Plan, load_plan

SMALL = Path(__file__).with_name("small.yaml")


def write_data(folder: Path) -> None:
    """`text/`, a file a topic; `chats.jsonl` in OpenAI's layout; `pairs.jsonl` of a better and a worse answer."""
    (folder / "text").mkdir(parents=True, exist_ok=True)
    chats, pairs = [], []
    for name, text in topics.items():
        (folder / "text" / f"{name}.txt").write_text(text, encoding="utf-8")
        question, answer = f"What is {name}?", text.strip().splitlines()[0]
        chats.append({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
        pairs.append({"prompt": question, "chosen": answer, "rejected": answer[::-1]})
    for file, rows in (("chats.jsonl", chats), ("pairs.jsonl", pairs)):
        (folder / file).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def small_plan(folder: Path, *settings: str) -> Plan:
    """The small recipe on that data, with `--set` settings on top; all state in the folder too."""
    sections = {
        "corpus": str(folder / "text"),
        "sft_data": str(folder / "chats.jsonl"),
        "preference_data": str(folder / "pairs.jsonl"),
        "execution": {"home": str(folder / ".bessemer"), "tracking_uri": "none"},
    }
    return load_plan(str(SMALL), settings, sections)
