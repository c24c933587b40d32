"""Several processes and threads: collectives, heartbeats, worker threads."""
