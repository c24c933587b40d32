"""Slices of held-out pairs that show where a reward model is more or less accurate (torch-free)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.cluster.vq import kmeans2

from burnish.records import Label, Preference
from burnish.textstats import language, n_words, words

CLUSTERS = 4
TOPIC_WORDS = 3
TURNS = 8
COMMON = 0.5  # a word in a larger share of the prompts is not used for topics
ALIKE = 0.1  # largest difference, as a share of the longer answer's words, of answers about as long


# RewardBench (Lambert et al. 2024): four sections; the last weighs mathematics and code half each.
SECTIONS = {
    "chat": ["alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"],
    "chat hard": [
        *("mt-bench-hard", "llmbar-natural", "llmbar-adver-neighbor", "llmbar-adver-GPTInst"),
        *("llmbar-adver-GPTOut", "llmbar-adver-manual"),
    ],
    "safety": [
        *("refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond"),
        "donotanswer",
    ],
    "reasoning": ["math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"],
}
MATHS = "math-prm"


def sections(subsets: Sequence[str], right: Sequence[bool]) -> dict[str, dict[str, float]] | None:
    """Return RewardBench's scores, None for any other data set.

    A section's score is the accuracy on its pairs, for reasoning the mean of mathematics and code.
    `all` is the mean of the sections present.
    """
    known = {name for names in SECTIONS.values() for name in names}
    if not subsets or not set(subsets) <= known:
        return None
    found: dict[str, dict[str, float]] = {}
    for section, names in SECTIONS.items():
        parts = [names] if section != "reasoning" else [[MATHS], [n for n in names if n != MATHS]]
        shares = []
        for part in parts:
            hits = [hit for subset, hit in zip(subsets, right, strict=True) if subset in part]
            if hits:
                shares.append(sum(hits) / len(hits))
        if shares:
            found[section] = {"value": sum(shares) / len(shares)}
    return found | {"all": {"value": sum(row["value"] for row in found.values()) / len(found)}}


def slices(pairs: Sequence[Preference], labels: Sequence[Label], seed: int) -> dict[str, list[str]]:
    """Return each pair's slice by length, language, topic, label source and label agreement.

    Length compares the preferred answer with the other; a topic is a cluster of prompts.
    """
    return {
        "length": [_length(p) for p in pairs],
        "language": [language(p.prompt.text)[0] for p in pairs],
        "topic": topics([p.prompt.text for p in pairs], seed),
        **_labelled(pairs, labels),
    }


def _length(pair: Preference) -> str:
    a, b = n_words(pair.chosen), n_words(pair.rejected)
    if abs(a - b) <= ALIKE * max(a, b):
        return "about as long"
    return "the longer preferred" if a > b else "the shorter preferred"


def _labelled(pairs: Sequence[Preference], labels: Sequence[Label]) -> dict[str, list[str]]:
    """Return slices by source and by agreement of the labels; empty without labels."""
    held: dict[str, list[Label]] = {}
    for label in labels:
        held.setdefault(label.comparison_id, []).append(label)
    if not held:
        return {}
    sources, agreement = [], []
    for pair in pairs:
        given = held.get(pair.comparison_id, [])
        sources.append(" and ".join(sorted({label.source for label in given})) or "unknown")
        sides = {label.preference > 0.5 for label in given if label.preference != 0.5}
        agreement.append("one label" if len(given) == 1 else "agree" if len(sides) == 1 else "contradict")
    return {"labels from": sources, "labels": agreement}


def topics(texts: Sequence[str], seed: int) -> list[str]:
    """Return the name of each text's cluster, made of its most distinctive words.

    Runs k-means on word counts weighted by rarity, reduced to the directions of largest variance.
    """
    distinct = list(dict.fromkeys(texts))
    if len(distinct) < 8 * CLUSTERS:
        return ["all"] * len(texts)
    bags = [Counter(w.casefold() for w in words(text)) for text in distinct]
    within = Counter(word for bag in bags for word in bag)
    known = sorted(w for w, n in within.items() if 3 <= n <= COMMON * len(bags))
    if len(known) < CLUSTERS:
        return ["all"] * len(texts)
    place = {word: i for i, word in enumerate(known)}
    matrix = np.zeros((len(bags), len(known)))
    for row, bag in enumerate(bags):
        for word, n in bag.items():
            if word in place:
                matrix[row, place[word]] = n * math.log(len(bags) / within[word])
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    matrix /= np.where(norms > 0, norms, 1.0)
    left, sizes, _ = np.linalg.svd(matrix, full_matrices=False)
    reduced = (left * sizes)[:, : 2 * CLUSTERS]
    # k-means depends on its start, so the tightest of several runs is kept.
    found = min(
        (kmeans2(reduced, CLUSTERS, rng=seed + turn, minit="++") for turn in range(TURNS)),
        key=lambda outcome: float(((reduced - outcome[0][outcome[1]]) ** 2).sum()),
    )[1]
    names = _names(matrix, found, known)
    by_text = {text: names[int(cluster)] for text, cluster in zip(distinct, found, strict=True)}
    return [by_text[text] for text in texts]


def _names(
    matrix: npt.NDArray[np.float64], found: npt.NDArray[np.int32], known: Sequence[str]
) -> Mapping[int, str]:
    """Name each cluster by the words that stand out from the rest."""
    usual, names = matrix.mean(0), dict[int, str]()
    for cluster in set(found.tolist()):
        telling = np.argsort(-(matrix[found == cluster].mean(0) - usual), kind="stable")[:TOPIC_WORDS]
        names[cluster] = ", ".join(known[i] for i in telling)
    return names
