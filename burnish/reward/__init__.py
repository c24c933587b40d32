"""Reward models: training, ensemble, examination and stress tests."""
