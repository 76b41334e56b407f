"""Smooth random fields from a handful of coefficients, and the soft steps and ridges that tissue is made of."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]  # [batch, rows, columns] unless it says otherwise; 1 where a dimension does not matter
T = TypeVar("T")
Getter = Callable[[Callable[[T], float]], Field]


def gather(items: Sequence[T]) -> Getter[T]:
    """A function that gathers one number of each item as float32 [batch, 1, 1].

    >>> gather([1.0, 2.0])(lambda item: 2 * item).ravel().tolist()
    [2.0, 4.0]
    """
    return lambda number: np.array([number(item) for item in items], np.float32)[:, None, None]


@lru_cache(maxsize=64)
def spline_basis(cells: int, points: int) -> Field:
    """float32 [points, cells]: uniform cubic B-splines over [0, 1], every row of unit length, so that unit normal coefficients give unit variance.

    Source: de Boor, "A Practical Guide to Splines", 1978, chapter IX.

    >>> spline_basis(6, 32).shape
    (32, 6)
    """
    position = np.linspace(1, cells - 2, points)[:, None] - np.arange(cells)[None, :]
    away = np.abs(position)
    basis = np.where(away < 1, 2 / 3 - away**2 + away**3 / 2, np.where(away < 2, (2 - away) ** 3 / 6, 0.0))
    return np.ascontiguousarray(basis / np.linalg.norm(basis, axis=1, keepdims=True), dtype=np.float32)


def smooth(coefficients: Field, rows: int, columns: int) -> Field:
    """Spread unit normal ``coefficients`` [batch, a, b] over [batch, rows, columns]: a smooth field of unit variance, a by b cells large."""
    down = spline_basis(coefficients.shape[1], rows)
    across = np.ascontiguousarray(spline_basis(coefficients.shape[2], columns).T)
    return np.asarray(np.matmul(down, np.matmul(coefficients, across)), dtype=np.float32)


def step(value: Field, softness: float | Field) -> Field:
    """0 below, 1 above, a ramp of width ``softness`` around 0.

    >>> step(np.array([-1, 0, 0.25, 1], np.float32), 1.0).tolist()
    [0.0, 0.5, 0.75, 1.0]
    """
    ramp: Field = value / softness
    ramp += np.float32(0.5)
    return np.clip(ramp, 0, 1, out=ramp)


def ridge(value: Field, width: float | Field) -> Field:
    """exp(-(value / width)^2): 1 where ``value`` is 0, so that a field's zero level becomes a thin curve."""
    thin: Field = value / width
    np.square(thin, out=thin)
    np.negative(thin, out=thin)
    return np.exp(thin, out=thin)
