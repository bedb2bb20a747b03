"""One stage, one file: each turns artifacts into an artifact, and knows files but no orchestrator."""
