"""Talk to a model at the terminal: question and streamed answer in turn."""

import sys
from pathlib import Path

from model.decoding.sampling import Sampling


def hold_conversation(folder: Path, message: str, sampling: Sampling, max_tokens: int) -> None:
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
        for piece in model.stream(messages, sampling, max_tokens):
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
