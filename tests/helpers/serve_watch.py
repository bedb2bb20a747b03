"""Serve `flows.watch` on an interval, a process of its own for each run: `serve_watch SECONDS STRATEGY PARAMETERS`."""

import json
import sys

from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy

from flows.watch import ingest

if __name__ == "__main__":
    seconds, strategy, parameters = sys.argv[1:]
    ingest.serve(
        name="watch",
        interval=float(seconds),
        global_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy(strategy)),
        parameters=json.loads(parameters),
        print_starting_message=False,
    )
