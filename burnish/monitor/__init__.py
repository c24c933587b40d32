"""Monitors: numbers and text in, alerts out; trackers and the live view."""
