"""Using a vector in a live model: adding it, searching its best setting, judging it beside its controls."""
