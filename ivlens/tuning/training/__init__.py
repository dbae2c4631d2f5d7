"""One training, whatever guides it: examples, options, loss, the places in the model, processes, the state on disk."""
