"""TinyReviews: a data set with known answers, written in seconds without a network.

Reviews come from ``grammar.py``, so their gold sentiment is known. Rankings come from
simulated annotators who see that sentiment through noise of their own, a few of them
through nothing else; even the gold sentiment therefore agrees with only about six
pairs in seven, and that is the accuracy which a reward model can reach.
"""

import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow_datasets as tfds

from rlhf_jax.data.grammar import gold_sentiment, review_prompts, sample_review
from rlhf_jax.data.row import Row
from rlhf_jax.data.sources import read_rows

Config = Literal["reviews", "rankings", "prompts"]

NUM_COMPLETIONS = 4
NUM_ANNOTATORS = 20
NUM_CARELESS = 2  # the last of the annotators
COOLEST, WARMEST = 0.08, 0.32  # temperatures of the others, in units of gold sentiment
NUM_TEST_PROMPTS = 320  # never seen in training
SIZES = {
    "reviews": {"train": 8000, "test": 500},
    "rankings": {"train": 6000, "test": 500},
}


class TinyReviews(tfds.core.GeneratorBasedBuilder):
    """Short film reviews of known sentiment, and rankings of them.

    No reference. Registered as ``tiny_reviews`` with three configs, each with the
    splits train and test, whose prompts differ:

    * ``reviews``: prompt, completion, gold;
    * ``rankings``: prompt, completions [4], ranks [4] (0 the best), golds [4],
      annotator;
    * ``prompts``: prompt.
    """

    VERSION = tfds.core.Version("1.0.0")  # another text or rank: another version
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="reviews", description="Demonstrations."),
        tfds.core.BuilderConfig(name="rankings", description="Ranked completions."),
        tfds.core.BuilderConfig(name="prompts", description="Openings of reviews."),
    ]
    # There is nothing to download; looking for a list of downloads needs a package,
    # importlib_resources, that tensorflow-datasets 4.9.10 uses and does not install.
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        assert self.builder_config is not None
        text, gold = tfds.features.Text(), tfds.features.Scalar(np.float32)
        shape = (NUM_COMPLETIONS,)
        features = {
            "reviews": {"prompt": text, "completion": text, "gold": gold},
            "rankings": {
                "prompt": text,
                "completions": tfds.features.Sequence(text, length=NUM_COMPLETIONS),
                "ranks": tfds.features.Tensor(shape=shape, dtype=np.int32),
                "golds": tfds.features.Tensor(shape=shape, dtype=np.float32),
                "annotator": tfds.features.Scalar(np.int32),
            },
            "prompts": {"prompt": text},
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Short film reviews from a grammar, of known sentiment.",
            features=tfds.features.FeaturesDict(features[self.builder_config.name]),
            disable_shuffling=True,  # the rows are in random order as they are
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        assert self.builder_config is not None
        config = self.builder_config.name
        prompts = split_prompts(split)
        rng = random.Random(f"tiny_reviews/{config}/{split}")
        if config == "prompts":
            rows = ({"prompt": prompt} for prompt in prompts)
        elif config == "reviews":
            rows = (_review(rng, prompts) for _ in range(SIZES[config][split]))
        else:
            rows = (_ranking(rng, prompts) for _ in range(SIZES[config][split]))
        yield from enumerate(rows)


def split_prompts(split: str) -> list[str]:
    """The prompts of a split in a random order that is always the same. No reference.

    Args:
      split: ``"train"`` or ``"test"``.

    Returns:
      320 prompts for test, all others for train.

    >>> train, test = split_prompts("train"), split_prompts("test")
    >>> len(train), len(test), set(train) & set(test)
    (448, 320, set())
    """
    prompts = review_prompts()
    random.Random("tiny_reviews/prompts").shuffle(prompts)
    return {"train": prompts[NUM_TEST_PROMPTS:], "test": prompts[:NUM_TEST_PROMPTS]}[
        split
    ]


def annotator_temperature(annotator: int) -> float:
    """How much noise a simulated annotator adds to the gold sentiment. No reference.

    Args:
      annotator: 0 … 19.

    Returns:
      A temperature in units of gold sentiment, log-uniform over the annotators from
      0.08 to 0.32; infinite for the careless, who rank at random.

    >>> [round(annotator_temperature(a), 2) for a in (0, 17, 18)]
    [0.08, 0.32, inf]
    """
    careful = NUM_ANNOTATORS - NUM_CARELESS
    if annotator >= careful:
        return math.inf
    return COOLEST * (WARMEST / COOLEST) ** (annotator / (careful - 1))


def simulated_ranks(
    golds: Sequence[float], *, temperature: float, rng: random.Random
) -> list[int]:
    """Ranks by a noisy annotator: Plackett–Luce with utilities gold / temperature.

    P(i is first of S) = exp(gᵢ/τ) / Σ_{j∈S} exp(gⱼ/τ), and so on with the others;
    drawn by ordering gᵢ/τ + Gumbel noise (Yellott 1977, no arXiv number). For two it is
    Bradley–Terry.

    Args:
      golds: gold sentiment of the completions.
      temperature: τ > 0; infinite ranks at random.
      rng: where the noise comes from; moved on.

    Returns:
      The rank of each completion, 0 the best.

    >>> simulated_ranks([-0.5, 0.9, 0.2], temperature=0.01, rng=random.Random(0))
    [2, 0, 1]
    """
    # −log of an exponential variable is a Gumbel one; 0 comes once in 2⁵³ draws.
    noise = [-math.log(max(rng.expovariate(1.0), 1e-300)) for _ in golds]
    utilities = [gold / temperature + n for gold, n in zip(golds, noise, strict=True)]
    order = sorted(range(len(golds)), key=lambda i: -utilities[i])
    return [order.index(i) for i in range(len(golds))]


def oracle_accuracy(
    chosen_gold: Sequence[float], rejected_gold: Sequence[float]
) -> float:
    """How often the gold sentiment agrees with the annotators: the best to hope for.

    No reference. The share of pairs whose chosen side has the higher gold sentiment;
    a tie counts one half.

    Args:
      chosen_gold: gold sentiment of the preferred sides.
      rejected_gold: of the others, pair by pair.

    Returns:
      A number in [0, 1].

    Raises:
      ValueError: there is no pair, or the lengths differ.

    >>> oracle_accuracy([0.5, 0.2, 0.1], [0.1, 0.2, 0.7])
    0.5
    """
    pairs = list(zip(chosen_gold, rejected_gold, strict=True))
    if not pairs:
        raise ValueError("no pairs: an accuracy needs at least one")
    return sum((c > r) + 0.5 * (c == r) for c, r in pairs) / len(pairs)


def gold_reward(*, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Gold sentiment as a reward function: of the completions, whatever the prompts.

    No reference.

    Args:
      prompts: B texts, not looked at.
      completions: B texts.

    Returns:
      B numbers in [−1, 1].

    >>> gold_reward(prompts=["i saw it and"], completions=[" the plot was good ."])
    [0.6]
    """
    del prompts
    return [gold_sentiment(completion) for completion in completions]


def load_tiny_reviews(
    config: Config, split: str, *, data_dir: str | Path | None = None
) -> list[Row]:
    """Reads TinyReviews, written on first use: ``read_rows("tfds:tiny_reviews/…")``.

    No reference.

    Args:
      config: ``"reviews"``, ``"rankings"`` or ``"prompts"``.
      split: ``"train"`` or ``"test"``, or a slice such as ``"train[:10%]"``.
      data_dir: where it is written; None is TensorFlow Datasets' own default.

    Returns:
      Rows for ``demonstrations``, ``rankings`` or ``prompts``.

    Raises:
      DataError: no such config or split.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     rows = load_tiny_reviews("prompts", "test", data_dir=folder)
    >>> len(rows), rows[0].origin
    (320, 'tfds:tiny_reviews/prompts[test]:1')
    """
    return read_rows(f"tfds:tiny_reviews/{config}", split=split, data_dir=data_dir)


def _review(rng: random.Random, prompts: Sequence[str]) -> dict[str, Any]:
    completion = sample_review(rng)
    gold = gold_sentiment(completion)
    return {"prompt": rng.choice(prompts), "completion": completion, "gold": gold}


def _ranking(rng: random.Random, prompts: Sequence[str]) -> dict[str, Any]:
    completions: list[str] = []
    while len(completions) < NUM_COMPLETIONS:
        completion = sample_review(rng)
        if completion not in completions:
            completions.append(completion)
    golds = [gold_sentiment(completion) for completion in completions]
    annotator = rng.randrange(NUM_ANNOTATORS)
    temperature = annotator_temperature(annotator)
    return {
        "prompt": rng.choice(prompts),
        "completions": completions,
        "ranks": simulated_ranks(golds, temperature=temperature, rng=rng),
        "golds": golds,
        "annotator": annotator,
    }
