"""Measure in a fresh process, so that start, imports, settings and memory are its own."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

T = TypeVar("T")


def in_child(function: Callable[..., T], *arguments: object) -> T:
    """Call in a process that is started for it; one that is killed raises instead of keeping everybody waiting."""
    # Spawn: a forked child would begin with its parent's memory and imports.
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
