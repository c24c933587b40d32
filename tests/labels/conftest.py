"""The short run of the pipeline's tests, for what is asked of its reward models."""

from tests.pipeline.conftest import short_run

__all__ = ["short_run"]
