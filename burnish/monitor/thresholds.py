"""How far a healthy run goes, with a margin; beyond it the detectors of `hacking` speak up.

Origin: see `ORIGIN`. Measured over windows of `WINDOW` updates against the first `BASELINE` ones.
"""

ORIGIN = "set by hand; not measured yet"
WINDOW = 5  # updates
BASELINE = 3  # updates at the start
RESPONSES = 96  # that a window must hold
LENGTH_GROWTH = 1.3  # times the length at the start
LENGTH_LOSS = 0.4
TRUNCATED = 0.15  # more of the responses than at the start
REPETITION = 0.1  # more of their word pairs
FOREIGN = 0.1  # more of the responses
UNLIKELY = 1.4  # times the reference's nats a token at the start
LIKELY = 0.5  # a policy that sharpens comes to two thirds of it
