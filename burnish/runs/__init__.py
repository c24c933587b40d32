"""Run directories: files, locks and the inputs of stages."""
