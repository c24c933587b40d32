"""Prompts, preference data and the label store."""
