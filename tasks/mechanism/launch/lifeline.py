"""Child processes that die with their parent, however it dies, so that no killed run leaves work behind."""

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1  # as in linux/prctl.h; Python has no name for it


def die_with_parent(how: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel to send `how` to this process when the thread that started it ends (prctl(2); Linux only).

    Called first thing in a child: a parent that died before the call has already left us to another process.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, how)  # None: the C library of this process, whatever its file is called
    if os.getppid() != parent:
        os._exit(1)


def main() -> None:
    """Run a server that is asked to stop when its starter is gone: `python -m ...lifeline MODULE ARGUMENT...`.

    SIGTERM and not SIGKILL: servers have children of their own, and only they know them.
    """
    die_with_parent(signal.SIGTERM)
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
