"""From prompts to labelled comparisons: the stages sft, collect and label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from burnish.data.preferences import read_demonstrations
from burnish.errors import DataError
from burnish.models.artefacts import save_policy
from burnish.models.load import Codec, load_model
from burnish.models.logprobs import Policy, make_policy
from burnish.models.sampling import sample_rollout
from burnish.models.shared_base import Top
from burnish.pipeline.context import Context
from burnish.policy.sft import fine_tune
from burnish.randomness import derive_seed
from burnish.records import Comparison, Label, Preference, Prompt, Response, content_id
from burnish.rehearse.annotators import SimulatedAnnotators


def sft(ctx: Context) -> list[str]:
    """Fine-tune on demonstrations, when there are any; the result is the reference policy from here on."""
    config = ctx.config.sft
    if config.demonstrations is None:
        return []
    lm, codec = load_model(ctx.config.model)
    base = ctx.make_base(lm, codec)
    demonstrations = read_demonstrations(config.demonstrations)
    fits: list[tuple[Prompt, str]] = []
    dropped = []
    for prompt, text in demonstrations:
        if _fits(ctx, codec, prompt, text):
            fits.append((prompt, text))
        else:
            dropped.append({"prompt": prompt.text[:80], "reason": "too long"})
    if dropped:
        ctx.reject("sft", dropped)
    if not fits:
        raise DataError(f"no demonstration in {config.demonstrations} fits; raise model.max_response_tokens")
    policy = make_policy(Top(base), codec.pad_id)
    updates = fine_tune(
        policy,
        codec,
        fits,
        config,
        learning_rate=ctx.rate("sft", config.learning_rate),
        seed=derive_seed(ctx.config.seed, "sft"),
    )
    for stats in updates:
        ctx.log("sft", stats)
    save_policy(policy.top, ctx.run.path / "sft", codec.tokenizer)
    return ["sft"]


def _fits(ctx: Context, codec: Codec, prompt: Prompt, text: str) -> bool:
    limits = ctx.config.model
    return (
        len(codec.encode_prompt(prompt)) <= limits.max_prompt_tokens
        and len(codec.encode_response(text)) <= limits.max_response_tokens
    )


def collect(ctx: Context) -> list[str]:
    """Sample pairs from the policy into the label store, a checkpoint after every chunk."""
    config = ctx.config.collect
    if ctx.config.label.source == "imported" or not config.n_pairs:
        return []
    prompts = ctx.splits.train
    policy = ctx.reference()
    policy.temperature = config.temperature
    found = ctx.run.latest_checkpoint("collect")
    first = found.step if found else 0
    chunks = range(0, config.n_pairs, config.batch_size)
    for number, start in enumerate(chunks):
        if number < first:
            continue
        size = min(config.batch_size, config.n_pairs - start)
        chunk = [prompts[i % len(prompts)] for i in range(start, start + size)]
        comparisons, identical = sample_pairs(ctx, policy, chunk, number)
        ctx.store.add_comparisons(comparisons)
        # What the store had before is not told: after a kill it may hold this chunk already.
        row = {"step": number + 1, "pairs": size, "identical": identical}
        ctx.run.append("metrics/collect.jsonl", row)
        ctx.run.checkpoint("collect", number + 1, lambda folder: None, {})
        ctx.view.progress(start + size, config.n_pairs)
    return ["labels.sqlite"]


def sample_pairs(
    ctx: Context, policy: Policy, prompts: Sequence[Prompt], chunk: int
) -> tuple[list[Comparison], int]:
    """One comparison a prompt; pairs that came out identical are counted, for they can teach nothing."""
    rollout = sample_rollout(
        policy,
        ctx.codec,
        [p for p in prompts for _ in range(2)],
        max_tokens=ctx.config.model.max_response_tokens,
        batch_size=2 * ctx.config.collect.batch_size,
        seed=ctx.config.seed,
        where=("collect", chunk),
    )
    answers = [Response(t, "policy", e) for t, e in zip(rollout.texts, rollout.ended, strict=True)]
    pairs = [Comparison(p, a, b) for p, a, b in zip(prompts, answers[::2], answers[1::2], strict=True)]
    different = [c for c in pairs if c.first.text != c.second.text]
    return different, len(pairs) - len(different)


def label(ctx: Context) -> list[str]:
    """Answer the comparisons: by simulated annotators, or with the labels that were imported."""
    if ctx.config.label.source == "imported":
        _import_labels(ctx)
    else:
        _simulate_labels(ctx)
    report = ctx.store.consensus_report()
    ctx.run.append("metrics/label.jsonl", {"step": 1, **report})
    return ["labels.sqlite"]


def _import_labels(ctx: Context) -> None:
    comparisons, labels = [], []
    times = Counter[str]()
    for pair in ctx.imported.pairs:
        drawn, preference = drawn_sides(pair)
        comparisons.append(drawn)
        # Two rows that say opposite things of one question are two voices, not one.
        times[drawn.id] += 1
        voice = "import" if times[drawn.id] == 1 else f"import-{times[drawn.id]}"
        labels.append(Label(drawn.id, voice, preference, "imported"))
    ctx.store.add_comparisons(comparisons)
    ctx.store.add_labels(labels)


def drawn_sides(pair: Preference) -> tuple[Comparison, float]:
    """The pair as a question, and how far it prefers the first side. Files put the winner first: which response
    stands first is drawn by a hash of both, so that "first wins" means nothing, whichever of them won."""
    chosen = Response(pair.chosen, ended=pair.chosen_ended)
    rejected = Response(pair.rejected, ended=pair.rejected_ended)
    texts = sorted((pair.chosen, pair.rejected))
    first = texts[int(content_id("side", pair.prompt.id, *texts), 16) % 2]
    if first == pair.chosen:
        return Comparison(pair.prompt, chosen, rejected), pair.confidence
    return Comparison(pair.prompt, rejected, chosen), 1.0 - pair.confidence


def _simulate_labels(ctx: Context) -> None:
    config = ctx.config.label
    assert ctx.gold is not None
    crowd = SimulatedAnnotators(ctx.gold, config.simulated, derive_seed(ctx.config.seed, "annotators"))
    labels = []
    for comparison in ctx.store.comparisons():
        first = int(comparison.id, 16)
        for turn in range(config.labels_per_pair):
            annotator = (first + turn) % config.simulated.annotators
            labels.append(crowd.label(comparison, annotator))
    if not labels:
        raise DataError("there is nothing to label: collect.n_pairs is 0 or every pair came out identical")
    ctx.store.add_labels(labels)
