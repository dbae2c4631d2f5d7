"""A vector at work in a live model: added, searched for, judged beside its controls."""
