"""The names of the stages, in order. This module needs no torch."""

from enum import StrEnum


class StageName(StrEnum):
    """A stage of the pipeline."""

    ROUNDS = "rounds"  # all but the last, where there are several
    SFT = "sft"
    COLLECT = "collect"
    LABEL = "label"
    REWARD = "reward"
    ALIGN = "align"
    EVALUATE = "evaluate"
    REPORT = "report"
