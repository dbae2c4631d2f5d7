"""The built-in model: its corpus, its training and its card. Weights and task bank are package data."""
