"""Who listens where: the sockets of a process and of all that it starts, looked at until it ends."""

import ipaddress
import subprocess
import time
from contextlib import suppress

import psutil

LOOK_EVERY_S = 0.1


def listening_until_end(process: subprocess.Popen[str]) -> set[str]:
    """Addresses that the process and its descendants listened on at any time until it ended."""
    found: set[str] = set()
    parent = psutil.Process(process.pid)
    while process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            for member in (parent, *parent.children(recursive=True)):
                found |= _addresses(member)
        time.sleep(LOOK_EVERY_S)
    return found


def _addresses(process: psutil.Process) -> set[str]:
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        connections = process.net_connections(kind="inet")
        return {connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN}
    return set()


def is_loopback(address: str) -> bool:
    """Whether nothing beyond this machine reaches it: 127.0.0.0/8 or ::1."""
    return ipaddress.ip_address(address).is_loopback
