"""Assignment: pair rows with columns so that the sum of what the pairs cost is least."""

from __future__ import annotations

import numpy as np

__all__ = ["assign"]


def assign(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pair every row with a column of its own, or every column with a row if those are fewer.

    Shortest augmenting paths, cubic in the shorter side: after Jonker and Volgenant, "A shortest
    augmenting path algorithm for dense and sparse linear assignment problems", Computing 38, 1987.

    Args:
        costs: ``(R, C)``, finite.

    Returns:
        Rows in rising order and the column of each, ``(min(R, C),)`` int64.

    Raises:
        ValueError: If the costs are no finite matrix.

    Example:
        >>> assign(np.array([[1.0, 2.0], [1.0, 9.0]]))[1].tolist()
        [1, 0]
    """
    costs = np.asarray(costs, dtype=np.float64)
    if costs.ndim != 2 or not np.isfinite(costs).all():
        raise ValueError("costs must be a finite matrix")
    if costs.shape[0] > costs.shape[1]:
        columns, rows = assign(costs.T)
        order = rows.argsort()
        return rows[order], columns[order]
    rows, columns = costs.shape
    row_price, column_price = np.zeros(rows), np.zeros(columns)
    row_of = np.full(columns, -1)
    for first in range(rows):
        # Dijkstra over columns, from a row without one to the nearest column without a row.
        distance, before = np.full(columns, np.inf), np.full(columns, -1)
        done = np.zeros(columns, dtype=bool)
        row, column, reached = first, -1, 0.0
        while row >= 0:
            along = reached + costs[row] - row_price[row] - column_price
            shorter = ~done & (along < distance)
            distance[shorter], before[shorter] = along[shorter], column
            column = int(np.where(done, np.inf, distance).argmin())
            reached, row = distance[column], row_of[column]
            done[column] = True
        inner = done & (row_of >= 0)
        row_price[first] += reached
        row_price[row_of[inner]] += reached - distance[inner]
        column_price[done] -= reached - distance[done]
        while column >= 0:
            earlier = before[column]
            row_of[column] = row_of[earlier] if earlier >= 0 else first
            column = earlier
    chosen = np.flatnonzero(row_of >= 0)
    order = row_of[chosen].argsort()
    return row_of[chosen][order], chosen[order]
