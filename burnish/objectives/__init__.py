"""Pure tensor functions: no model, no configuration, no I/O."""
