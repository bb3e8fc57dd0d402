"""Loops that oracles are made of, in float64."""

from collections.abc import Callable

import numpy as np


def each(f: Callable[..., float], *arrays, shape=None) -> np.ndarray:
    """f at every index of the first array: f(index) -> float."""
    shape = arrays[0].shape if shape is None else shape
    out = np.zeros(shape)
    for index in np.ndindex(*shape):
        out[index] = f(index)
    return out


def lse(z) -> float:
    return float(np.log(sum(np.exp(v) for v in z)))


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def variance(values) -> float:
    values = list(values)
    return mean((v - mean(values)) ** 2 for v in values)


def softmax(z) -> np.ndarray:
    return np.array([np.exp(v - lse(z)) for v in z])
