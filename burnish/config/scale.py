"""Section `scale`: the processes that share a run."""

from pydantic import Field

from burnish.config.strict import Section


class ScaleConfig(Section):
    """Processes that share a run. They change results by rounding only, so no finished stage becomes stale."""

    workers: int = Field(
        1, ge=1, description="Processes on this machine or in the Ray cluster. Leave it at 1 under torchrun."
    )
    ray: str | None = Field(
        None,
        description="Address of a Ray cluster; `auto` joins this machine's cluster or starts one. It needs `pip "
        "install 'burnish[ray]'` and a run directory that all machines can reach.",
    )
    max_restarts: int = Field(
        3, ge=0, description="Restarts of all processes from the last checkpoint after one of them died."
    )
    shard: bool = Field(
        False,
        description="Shard frozen layers over the processes; a layer is gathered while it computes. Set it for a "
        "model that fits on no single device.",
    )
    timeout: float = Field(
        600.0, gt=0, description="Seconds without an answer after which a process counts as dead."
    )
