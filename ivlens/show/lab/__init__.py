"""The lab: a live page, in a notebook or a browser, on which heads, vector and completions of a model are changed."""

from ivlens.show.lab.opening import lab

__all__ = ["lab"]
