"""Cosines between vectors of any tasks and models of one width, alike ones side by side."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from ivlens.vectors.vector import InstructionVector

if TYPE_CHECKING:
    import pandas as pd


def similarity(vectors: Mapping[str, InstructionVector]) -> "pd.DataFrame":
    """Cosine of every pair of vectors, rows and columns in hierarchical order.

        >>> similarity({f"{stage.name} {task}": stage.vector(task) for stage in stages for task in stage.tasks})

    Args:
        vectors: By name; of one model or of several with the same `d_model`. Whether the directions of two models mean
            the same is another question: of a model and a lightly tuned descendant they do, of two models that were
            trained apart they do not.

    Raises:
        ValueError: fewer than two vectors, a zero one, or other widths.
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
    """Order of the leaves of an average-linkage tree over `1 - cosine`, turned so that neighbours are most alike."""
    distances = 1.0 - cosines
    distances = np.clip((distances + distances.T) / 2, 0.0, None)
    np.fill_diagonal(distances, 0.0)
    tree = linkage(squareform(distances, checks=False), method="average", optimal_ordering=True)
    return leaves_list(tree).tolist()
