"""Language models and heads: loading, cutting, log-probabilities, sampling."""
