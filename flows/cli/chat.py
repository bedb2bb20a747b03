"""Talk to a model at the terminal: find its folder by name, then question and streamed answer in turn."""

import sys
from pathlib import Path

from flows.champion import find_champion
from flows.show.summary import MODEL_LABELS
from tasks.mechanism.runs import artifact_of, list_runs
from tasks.mechanism.store import Store, StoreDamage

DEFAULT_MODEL = "int8"


def model_folder(store: Store, model: str, run: str) -> Path:
    """The folder of a model named by run and form, or given as a path.

    Raises:
        ValueError: no such model, run or folder.
    """
    if model and (Path(model) / "config.json").is_file():
        return Path(model)
    name = model or DEFAULT_MODEL
    if name not in MODEL_LABELS:
        raise ValueError(f"There is no model {name!r}. Name one of {', '.join(MODEL_LABELS)}, or a model folder.")
    digest = "" if run else _champion_digest(store, name)
    if not digest:
        return artifact_of(store, run, MODEL_LABELS[name]).path
    try:
        return store.open(digest).path
    except StoreDamage as damage:
        raise ValueError(
            f"The champion's {name} model cannot be loaded: {damage}. Run the recipe again to rebuild it."
        ) from damage


def _champion_digest(store: Store, name: str) -> str:
    """The model of the latest run's recipe's champion; "" if it has none."""
    runs = list_runs(store)
    champion = find_champion(store, str(runs[-1].recipe["name"])) if runs else None
    return champion.models[name] if champion else ""


def hold_conversation(folder: Path, message: str, temperature: float, max_tokens: int) -> None:
    """Answer `message`, or, if it is empty, go on asking until the input ends."""
    from tasks.models.chat import ChatModel

    model = ChatModel.load(folder)
    messages: list[dict[str, str]] = []
    while True:
        question = message or _ask()
        if not question:
            return
        messages.append({"role": "user", "content": question})
        answer = ""
        for piece in model.stream(messages, temperature=temperature, max_tokens=max_tokens):
            answer += piece
            print(piece, end="", flush=True)
        print()
        if message:
            return
        messages.append({"role": "assistant", "content": answer})


def _ask() -> str:
    """One line from the user; "" at the end of the input."""
    if sys.stdin.isatty():
        print("\n> ", end="", flush=True)
    while line := sys.stdin.readline():
        if line.strip():
            return line.strip()
    return ""
