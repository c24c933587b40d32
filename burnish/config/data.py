"""Section `data`: the prompts and their splits."""

from pydantic import Field

from burnish.config.strict import Section


class DataConfig(Section):
    """Prompts, and how they are split. A hash of the prompt decides its split, so that it never changes."""

    prompts: str = Field(
        "stories",
        description="Source of the prompts: `stories` (the rehearsal's), a .jsonl or .txt file, or `preferences` "
        "(the prompts of label.preferences). Set it for every run with a model of your own.",
    )
    columns: dict[str, str] = Field(
        {},
        description="Columns of label.preferences under other names: the name that Burnish reads, then that in the "
        "file, as in {prompt: question, chosen: best}.",
    )
    decided_by: str | None = Field(
        None,
        description="What decides between responses where the data give several scores: a grade of HelpSteer2, a score "
        "of UltraFeedback, better or safer in PKU-SafeRLHF. null: the format's default, if it has one.",
    )
    n_prompts: int | None = Field(
        None,
        ge=1,
        description="Prompts used at most; null: all, or 2,400 stories. Lower it for a short trial.",
    )
    selection_share: float = Field(
        0.15, gt=0, lt=0.5, description="Share of the prompts held out to select among candidates."
    )
    test_share: float = Field(
        0.3,
        gt=0,
        lt=0.6,
        description="Share of the prompts held out for the final win rate. Lower it where prompts are many: the "
        "number of test prompts sets the width of the interval, evaluate.n_test caps it.",
    )
    rejected_rows_limit: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of unusable rows above which an import stops with an error. Lower it for data that "
        "should be clean.",
    )
