"""What carries bytes and never shapes them: stages, store, shards, child processes; no code digest counts it."""
