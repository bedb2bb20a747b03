"""Locks by flock(2): the kernel frees one however its holder dies, so none is ever left behind by a crash."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def hold(lock: Path) -> Iterator[None]:
    """Wait for the lock, and hold it as long as the context is open."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as stream:  # opened anew: flock is the open file's, so threads of one process take turns too
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def is_held(lock: Path) -> bool:
    """Whether anybody holds the lock, in this process or another."""
    try:
        with lock.open("r+") as stream:  # r+ creates nothing where nobody ever held it
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
