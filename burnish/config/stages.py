"""The names of the stages, in order; torch-free, for whoever only names them."""

from enum import StrEnum


class StageName(StrEnum):
    """A stage of the pipeline."""

    SFT = "sft"
    COLLECT = "collect"
    LABEL = "label"
    REWARD = "reward"
    ALIGN = "align"
    EVALUATE = "evaluate"
    REPORT = "report"
