"""Who won: head-to-head judgements, intervals, the champion rule."""
