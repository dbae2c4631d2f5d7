"""The map of all heads in a notebook, on which heads are chosen by clicking; a vector is made of those chosen."""

from ivlens.show.picking.opening import pick

__all__ = ["pick"]
