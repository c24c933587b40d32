"""Reports of a run (summary, charts, HTML page), from the run directory alone."""
