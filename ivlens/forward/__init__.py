"""One pass through a model: hooks, inputs, shared prefixes, mean head outputs, scores, completions."""
