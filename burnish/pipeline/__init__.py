"""Stages of a run and the code that connects them to the other packages."""
