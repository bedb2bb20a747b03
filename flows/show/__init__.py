"""What people read of runs: summary, Markdown, comparison and its page; reads records, never runs anything."""
