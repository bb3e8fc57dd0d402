"""What the benchmark runs on: two Llamas and uniform token ids.

Ids are drawn by NumPy from seed 0 and up, uniform over [3, V), anew for each iteration,
so that no row is padded and none has an end token.
"""

from collections.abc import Iterator

import numpy as np

from rlhf_jax.data import Preference, collate_preferences
from rlhf_jax.data.batching import left_padded
from rlhf_jax.models import TransformerConfig
from rlhf_jax.types import PreferenceBatch, TokenBatch

FIRST_ID = 3  # 0 … 2 are padding, unknown and the end, which no data has

MODELS = {
    "M25": TransformerConfig(
        vocab_size=8_192,
        d_model=512,
        n_layers=8,
        n_heads=8,
        n_kv_heads=4,
        d_head=64,
        d_ff=1_536,
        max_length=4_096,
        scan_unroll=8,
    ),
    "M3": TransformerConfig(
        vocab_size=1_024,
        d_model=192,
        n_layers=6,
        n_heads=6,
        n_kv_heads=6,
        d_head=32,
        d_ff=512,
        max_length=4_096,
        scan_unroll=6,
    ),
}


def ids(
    model: TransformerConfig, rows: int, length: int, *, seed: int
) -> Iterator[list[tuple[int, ...]]]:
    """Batches of rows of token ids without end."""
    generator = np.random.default_rng(seed)
    while True:
        drawn = generator.integers(FIRST_ID, model.vocab_size, (rows, length))
        yield [tuple(row) for row in drawn.tolist()]


def prompts(model: TransformerConfig, rows: int, length: int) -> Iterator[TokenBatch]:
    """Batches of prompts without end."""
    for drawn in ids(model, rows, length, seed=0):
        yield left_padded(drawn, length=length, pad_id=0)


def pairs(
    model: TransformerConfig, rows: int, length: int, *, prompt: int
) -> Iterator[PreferenceBatch]:
    """Batches of pairs without end, ``length`` tokens a side, ``prompt`` shared."""
    asked = ids(model, rows, prompt, seed=0)
    answers = [ids(model, rows, length - prompt, seed=seed) for seed in (1, 2)]
    for shared, *sides in zip(asked, *answers, strict=True):
        drawn = zip(shared, *sides, strict=True)
        yield collate_preferences(
            [Preference(*pair) for pair in drawn], length=length, pad_id=0
        )
