"""Where the dashboards of a home folder listen while `bessemer up` runs, for all who link to them."""

import urllib.request
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tasks.mechanism.store import write_atomically

HEALTH_TIMEOUT_S = 2.0


class Addresses(BaseModel):
    """Where the servers of a home folder listen; `servers/addresses.json` while `bessemer up` runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prefect: str
    mlflow: str
    pid: int

    @property
    def prefect_api(self) -> str:
        """The address that clients use."""
        return f"{self.prefect}/api"


def server_folder(home: Path) -> Path:
    """Addresses, lock and logs of the servers."""
    return home.resolve() / "servers"


def save_addresses(home: Path, addresses: Addresses) -> None:
    """Tell other processes where the servers are."""
    write_atomically(server_folder(home) / "addresses.json", addresses.model_dump_json().encode())


def forget_addresses(home: Path) -> None:
    """The servers are gone."""
    (server_folder(home) / "addresses.json").unlink(missing_ok=True)


def live_addresses(home: Path) -> Addresses | None:
    """Where the servers of this home listen, if Prefect's answers; what a killed `up` left counts for nothing."""
    try:
        addresses = Addresses.model_validate_json((server_folder(home) / "addresses.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return addresses if answers(f"{addresses.prefect_api}/health") else None


def required_addresses(home: Path) -> Addresses:
    """The same, for what cannot be done without servers.

    Raises:
        ValueError: none is up for this home.
    """
    addresses = live_addresses(home)
    if addresses is None:
        raise ValueError(f"No server is up for {home.resolve()}. Start it with `bessemer up`, then try again.")
    return addresses


def answers(address: str) -> bool:
    """Whether an HTTP GET succeeds."""
    try:
        with urllib.request.urlopen(address, timeout=HEALTH_TIMEOUT_S) as reply:
            return bool(reply.status == 200)
    except (OSError, ValueError):
        return False
