"""What the command line takes: verbs whose arguments stand in any order, and numbers within bounds."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from flows.fields import shorten

HIGHEST_PORT = 65535
LONGEST_MESSAGE = 800
MOST = 1_000_000
"""Samples, tokens or runs: more than anybody reads, has or keeps, and few enough for whatever counts them."""


class Parser(argparse.ArgumentParser):
    """Ends a mistake in a message of a paragraph, however long what was typed."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and leave."""
        super().error(message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]}...")


class VerbParser(Parser):
    """Takes options between the arguments of a verb too: `inspect filter --samples 5 RUN`, as one does after a look.

    By itself argparse takes an argument that may be left out as left out where an option follows the one before it.
    """

    _is_intermixing = False

    def parse_known_args(  # type: ignore[override]  # typeshed has an overload for each kind of namespace
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """What `ArgumentParser` says; its own way of intermixing calls this, once for options and once for the rest."""
        if self._is_intermixing:
            return super().parse_known_args(args, namespace)
        self._is_intermixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_intermixing = False


def whole(low: int, high: int) -> Callable[[str], int]:
    """Reads a whole number from `low` to `high`; argparse says which option was wrong."""

    def read(text: str) -> int:
        try:
            found = int(text)
        except ValueError:
            found = low - 1
        if not low <= found <= high:
            raise argparse.ArgumentTypeError(f"{shorten(text)} found, a whole number from {low} to {high} expected")
        return found

    return read


def number(low: float, high: float) -> Callable[[str], float]:
    """Reads a number from `low` to `high`; argparse says which option was wrong."""

    def read(text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            found = low - 1
        if not low <= found <= high:  # as nan is not
            raise argparse.ArgumentTypeError(f"{shorten(text)} found, {low:g} to {high:g} expected")
        return found

    return read
