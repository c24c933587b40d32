"""By how many processes a run is carried out, and where."""

from pydantic import Field

from burnish.config.strict import Section


class ScaleConfig(Section):
    """Processes that share a run. What comes of it does not depend on them but for rounding: nothing here makes a
    finished stage stale."""

    workers: int = Field(1, ge=1)  # on this machine or in the Ray cluster; 1 under torchrun
    # auto: the Ray cluster this machine belongs to, or one that is begun here; or a cluster's address
    # (`pip install 'burnish[ray]'`). The run directory must be one that all its machines see.
    ray: str | None = None
    max_restarts: int = Field(3, ge=0)  # of all processes, from the last checkpoint, when one of them died
    # Each process keeps its part alone of every layer that no model trains whole, and puts one together while it
    # computes with it: for a base that no device holds.
    shard: bool = False
    timeout: float = Field(600.0, gt=0)  # seconds without an answer, after which a process counts as gone
