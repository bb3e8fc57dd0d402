"""What a row of the table of laws says of an op, and arguments to try it on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

B, T, V, K = 5, 6, 7, 4
BT = (B, T)
Rng = np.random.Generator
Args = tuple[np.ndarray, ...]


# Arguments.


def floats(*shapes):
    return lambda rng: tuple(rng.normal(size=s) for s in shapes)


def random_mask(rng: Rng) -> np.ndarray:
    """Holes, left padding, a row without any True and a row of them."""
    mask = rng.random((B, T)) < 0.6
    mask[0], mask[1], mask[2, :3] = False, True, False
    return mask


def with_mask(*shapes):
    return lambda rng: (*floats(*shapes)(rng), random_mask(rng))


def packed(*shapes):
    """Rows of two or three sequences and padding, which owns nothing."""

    def args(rng: Rng) -> Args:
        segment_ids = np.sort(rng.integers(1, 4, BT), axis=1)
        segment_ids[:, -1] = 0
        mask = random_mask(rng) & (segment_ids > 0)
        return *floats(*shapes)(rng), segment_ids, mask

    return args


def with_ints(high: int, *shapes):
    """Floats of all shapes but the last, which is of ints below high."""

    def args(rng: Rng) -> Args:
        return *floats(*shapes[:-1])(rng), rng.integers(0, high, shapes[-1])

    return args


def with_ranks(rng: Rng) -> Args:
    ranks = rng.integers(-1, 3, (B, K))
    ranks[0] = -1
    return rng.normal(size=(B, K)), ranks


def with_unknown(high: int, shape: tuple[int, ...]):
    """Floats, and for each row an int below high; −1 for some."""

    def args(rng: Rng) -> Args:
        who = rng.integers(-1, high, shape[:1])
        who[:2] = -1, high - 1
        return rng.normal(size=shape), who

    return args


def with_masks(rng: Rng) -> Args:
    """The log-probs of one side of pairs, the mask of the other side and its own."""
    return rng.normal(size=(B, T)), rng.random((B, T + 1)) < 0.6, random_mask(rng)


def some_pairs(rng: Rng) -> Args:
    return *floats(*[(B,)] * 4)(rng), np.arange(B) != rng.integers(B)


def negative(rng: Rng) -> Args:
    """As the log of a probability is."""
    return tuple(-0.1 - rng.random(B) for _ in range(2))


def with_labels(rng: Rng) -> Args:
    return *floats((B,), (B,))(rng), rng.random(B) < 0.5


def kl_coefs(rng: Rng) -> Args:
    return np.asarray(rng.uniform(0.1, 0.3)), np.asarray(rng.uniform(5.0, 7.0))


# What the mask, the last argument, hides: one bool array an argument, None for none.


def no_mask(*args):
    return (None,) * len(args)


def under_mask(*args):
    return *(~args[-1] for _ in args[:-1]), None


def under_packed_mask(*args):
    return *(~args[-1] for _ in args[:-2]), None, None


def under_next_mask(student, teacher, mask):
    """Index t of logits is about token t + 1, the last about none."""
    about = np.zeros_like(mask)
    about[:, :-1] = mask[:, 1:]
    hidden = np.broadcast_to(~about[..., None], student.shape)
    return hidden, hidden, None


def under_mask_with_scores(scores, logprobs, ref, mask):
    return ~mask.any(axis=1), ~mask, ~mask, None


def under_last_mask(logprobs, other_mask, mask):
    return ~mask, None, None


def negative_ranks(scores, ranks):
    return ranks < 0, None


def negative_rows(features, who):
    return np.broadcast_to((who < 0)[:, None], features.shape), None


class Row(NamedTuple):
    op: Callable[..., Any]
    args: Callable[[Rng], Args]
    hides: Callable[..., tuple[np.ndarray | None, ...]] = no_mask
    nothing: Any = False  # the mask entry that owns nothing
    widens: bool = True  # float32 out of bfloat16; False: keeps the dtype
    detached: bool = False  # has weights without a gradient, fixed at the oracle's `at`
