"""The report: summary, charts, one page; reads only the run directory."""
