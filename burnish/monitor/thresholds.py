"""How far a healthy run goes, with a margin; beyond it the detectors of `hacking` speak up.

Origin: see `ORIGIN`. Measured over windows of `WINDOW` updates against the first ones.
"""

ORIGIN = (
    "quickstart, seeds 0 to 4, commit 6a3ae4d: length fell to 0.61 and rose to 0.98 of its start, cut-off answers rose "
    "by 0.009 at most, repeated word pairs by 0.010, answers in another language by 0.002, the reference's nats a "
    "token went from 0.97 to 1.17 times their start; no window of 180 updates was over a limit. A real model "
    "(SmolLM2 on AI feedback): length 0.64 of its start, entropy 0.7. FORMATTED, ENTROPY, SPREAD, DUPLICATES, STOCK "
    "and GAP are chosen, not measured: on the quickstart, seed 0, commit e3d3818, medians of five updates came to 0 "
    "formatted answers and near-duplicates, 0.06 more with one phrase, 0.94 of the entropy, 1.10 of the spread and 1.5 "
    "of the gap at the start"
)
WINDOW = 5  # updates
BASELINE = 3  # updates at the start
RESPONSES = 96  # that a window, and the start, must hold
FEWEST = 3  # updates of a window that must have a figure
HISTORY = 20  # updates from whose differences the noise is known
SURE = 3.0  # standard errors by which a figure must have moved
SURE_RISE = 2.0  # and the reward must have risen
LENGTH_GROWTH = 1.3  # times the length at the start
LENGTH_LOSS = 0.4
TRUNCATED = 0.15  # more of the responses than at the start
REPETITION = 0.1  # more of their word pairs
FOREIGN = 0.1  # more of the responses
UNLIKELY = 1.4  # times the reference's nats a token at the start
LIKELY = 0.5  # a policy that sharpens comes to two thirds of it
FORMATTED = 0.2  # more of the responses with marks of Markdown
ENTROPY = 0.45  # of its start
SPREAD = 1.5  # times the members' disagreement at the start
DUPLICATES = 0.3  # more of the responses that say nearly what one to another prompt says
STOCK = 0.3  # more of the responses that share one phrase
GAP = 10.0  # times the sampling gap at the start
GAP_LEAST = 0.05  # nats that it must have come to
