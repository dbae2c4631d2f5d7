"""Cosines between vectors of any tasks and models of the same width, ordered so that similar ones are neighbours."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from ivlens.vectors.vector import InstructionVector

if TYPE_CHECKING:
    import pandas as pd


def similarity(vectors: Mapping[str, InstructionVector]) -> "pd.DataFrame":
    """The cosine of every pair of vectors, with rows and columns in the same hierarchical order.

        >>> similarity({f"{stage.name} {task}": stage.vector(task) for stage in stages for task in stage.tasks})

    Args:
        vectors: Vectors by name, of one model or of several models with the same `d_model`. Directions mean the same in
            a model and in one lightly tuned from it, but not in two models that were trained apart.

    Raises:
        ValueError: fewer than two vectors, a vector of zeros, or vectors of different widths.
    """
    import pandas as pd

    names = list(vectors)
    if len(names) < 2:
        raise ValueError(f"similarity got the vectors {names}, expected two or more.")
    cosines = np.array([[one.cosine(other) for other in vectors.values()] for one in vectors.values()])
    order = hierarchical_order(cosines)
    listed = [names[index] for index in order]
    return pd.DataFrame(cosines[np.ix_(order, order)], index=listed, columns=listed)


def hierarchical_order(cosines: np.ndarray) -> list[int]:
    """An order in which similar vectors are neighbours: the leaves of an average-linkage tree over `1 - cosine`."""
    distances = 1.0 - cosines
    # rounding leaves small negative values and asymmetries, which no distance has
    distances = np.clip((distances + distances.T) / 2, 0.0, None)
    np.fill_diagonal(distances, 0.0)
    # a tree fixes the order only up to swaps of branches; `optimal_ordering` puts the most similar leaves together
    tree = linkage(squareform(distances, checks=False), method="average", optimal_ordering=True)
    return leaves_list(tree).tolist()
