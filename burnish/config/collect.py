"""Section `collect`: the pairs to be labelled."""

from pydantic import Field

from burnish.config.strict import Section


class CollectConfig(Section):
    """Pairs of responses sampled from the policy, to be labelled."""

    n_pairs: int = Field(
        1536,
        ge=0,
        description="Pairs to sample and label, over all rounds. 0 samples none and uses the labels of "
        "label.store. It has no effect on imported labels. Raise it if the reward models' agreement on validation "
        "pairs still grows with the number of labels.",
    )
    previous_run: str | None = Field(
        None,
        description="Directory of an earlier run of the same model. The run reuses its labels, samples from its "
        "aligned policy and selects pairs with its reward models. Set it to continue with new labels after a "
        "finished run.",
    )
    temperature: float = Field(
        1.0,
        gt=0,
        description="Sampling temperature. Raise it where the two responses of a pair are often the same.",
    )
    batch_size: int = Field(
        128, ge=1, description="Pairs sampled at once. Lower it where sampling runs out of memory."
    )
