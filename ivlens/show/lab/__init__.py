"""The lab: heads, vectors and completions of a live model on one page, in a notebook and in the browser."""

from ivlens.show.lab.opening import lab

__all__ = ["lab"]
