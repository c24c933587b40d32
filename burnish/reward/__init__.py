"""Reward models: training, ensemble, examination."""
