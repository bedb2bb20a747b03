"""Tell Prefect that text has arrived; `bessemer up` has a deployment of `ingest` that an automation then starts."""

import base64
import json
import os
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from flows.addresses import required_addresses

EVENT = "bessemer.text.arrived"
RESOURCE = "bessemer.text"
TIMEOUT_S = 10.0
UNAUTHORIZED = 401


def notify(home: Path, path: Path) -> None:
    """Emit the event for a file or folder.

    Raises:
        ValueError: the path does not exist, no server is up for this home, or it refuses us.
    """
    if not path.exists():
        raise ValueError(f"{path}: there is no such file or folder, so there is nothing to tell about.")
    addresses = required_addresses(home)
    resolved = path.resolve()
    event = {
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": EVENT,
        "resource": {"prefect.resource.id": f"{RESOURCE}.{resolved}", "prefect.resource.name": resolved.name},
        "payload": {"path": str(resolved)},
    }
    # By hand: the import of Prefect's client takes 3.4 CPU-s, the request none.
    request = urllib.request.Request(
        f"{addresses.prefect_api}/events",
        data=json.dumps([event]).encode(),
        headers={"Content-Type": "application/json", **credentials()},
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):
            pass
    except urllib.error.HTTPError as refusal:
        hint = " Set PREFECT_API_AUTH_STRING to the server's `user:password`." if refusal.code == UNAUTHORIZED else ""
        raise ValueError(f"Prefect at {addresses.prefect} refused the event (HTTP {refusal.code}).{hint}") from refusal


def credentials() -> dict[str, str]:
    """The header for a server with basic authentication, from the variable that Prefect's own clients read."""
    login = os.environ.get("PREFECT_API_AUTH_STRING", "")
    return {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()} if login else {}
