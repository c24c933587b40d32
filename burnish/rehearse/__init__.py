"""The rehearsal: a tiny real language model, a known true preference, simulated annotators."""
