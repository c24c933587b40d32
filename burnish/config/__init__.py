"""Configuration: strict sections, one small file a stage; torch-free."""

from burnish.config.run import RunConfig

__all__ = ["RunConfig"]
