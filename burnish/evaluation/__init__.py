"""Comparisons of policies: win rates, the champion rule, overoptimization curves."""
