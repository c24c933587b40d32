"""Monitors that turn figures and texts into alerts, metric trackers, and the live view."""
