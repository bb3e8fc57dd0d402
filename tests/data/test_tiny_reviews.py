"""TinyReviews: built offline in seconds, always the same, its noise as designed."""

import hashlib
import json
import math
import random
import socket
import statistics
import sys

import pytest

from rlhf_jax.data import (
    DataError,
    TinyReviews,
    demonstrations,
    gold_sentiment,
    load_tiny_reviews,
    oracle_accuracy,
    prompts,
    rankings,
)
from rlhf_jax.data.tiny_reviews import (
    NUM_ANNOTATORS,
    Config,
    annotator_temperature,
    simulated_ranks,
)
from rlhf_jax.feedback import ranking_pairs

CONFIGS: tuple[Config, ...] = ("reviews", "rankings", "prompts")
PARTS: list[tuple[Config, str]] = [
    (config, split) for config in CONFIGS for split in ("train", "test")
]
# Another digest is another data set: change VERSION with it, so that old files on disk
# are not read as the new ones.
DIGEST = ("1.0.0", "1699745f0f817681")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:

        def connect(*args):
            raise AssertionError(f"the network was asked for: {args}")

        patch.setattr(socket.socket, "connect", connect)
        folder = tmp_path_factory.mktemp("tfds")
        return {part: load_tiny_reviews(*part, data_dir=folder) for part in PARTS}


def oracle(rows) -> float:
    pairs = [pair for ranking in rankings(rows) for pair in ranking_pairs(ranking)]
    chosen = [gold_sentiment(pair.chosen) for pair in pairs]
    return oracle_accuracy(chosen, [gold_sentiment(pair.rejected) for pair in pairs])


def test_sizes(parts):
    assert {part: len(rows) for part, rows in parts.items()} == {
        ("reviews", "train"): 8000,
        ("reviews", "test"): 500,
        ("rankings", "train"): 6000,
        ("rankings", "test"): 500,
        ("prompts", "train"): 448,
        ("prompts", "test"): 320,
    }


def test_without_tensorflow(parts):
    assert parts and "tensorflow" not in sys.modules


def test_always_the_same_rows(parts):
    rows = {"/".join(part): [row.values for row in parts[part]] for part in PARTS}
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    assert (str(TinyReviews.VERSION), digest[:16]) == DIGEST


def test_rows_become_records(parts):
    demonstration = demonstrations(parts["reviews", "train"])[0]
    assert demonstration.completion.startswith(" ")
    assert demonstration.origin == "tfds:tiny_reviews/reviews[train]:1"
    assert len(rankings(parts["rankings", "test"])[0].completions) == 4
    assert len({p.prompt for p in prompts(parts["prompts", "test"])}) == 320


def test_held_out_prompts_and_reviews_are_other_ones(parts):
    used = {part: {row.values["prompt"] for row in parts[part]} for part in PARTS}
    trained = used["reviews", "train"] | used["rankings", "train"]
    held_out = used["reviews", "test"] | used["rankings", "test"]
    assert trained <= used["prompts", "train"]
    assert held_out <= used["prompts", "test"]
    assert not used["prompts", "train"] & used["prompts", "test"]
    completions = [
        {c for row in parts["rankings", split] for c in row.values["completions"]}
        for split in ("train", "test")
    ]
    assert len(completions[0] & completions[1]) <= 0.01 * len(completions[1])


def test_gold_is_that_of_the_text(parts):
    for row in parts["reviews", "test"]:
        assert row.values["gold"] == pytest.approx(
            gold_sentiment(row.values["completion"]), abs=1e-6
        )
    for row in parts["rankings", "test"]:
        golds = [gold_sentiment(c) for c in row.values["completions"]]
        assert row.values["golds"] == pytest.approx(golds, abs=1e-6)
        assert len(set(row.values["completions"])) == 4
        assert sorted(row.values["ranks"]) == [0, 1, 2, 3]


def test_gold_is_neutral_given_any_prompt(parts):
    """Whatever words a prompt has: the mean is within 4 standard errors of 0."""
    golds: dict[str, list[float]] = {}
    for row in parts["reviews", "train"]:
        for word in set(row.values["prompt"].split()):
            golds.setdefault(word, []).append(row.values["gold"])
    for values in golds.values():
        error = statistics.pstdev(values) / math.sqrt(len(values))
        assert abs(statistics.mean(values)) < 4 * error


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_best_possible_accuracy_is_six_in_seven(split, parts):
    assert 0.83 < oracle(parts["rankings", split]) < 0.87


def test_careless_annotators_say_nothing_and_the_others_grow_noisier(parts):
    by_annotator: dict[int, list] = {}
    for row in parts["rankings", "train"]:
        by_annotator.setdefault(row.values["annotator"], []).append(row)
    assert set(by_annotator) == set(range(NUM_ANNOTATORS))
    accuracy = lambda who: oracle([row for a in who for row in by_annotator[a]])
    # About 600 rankings, of six dependent pairs: a standard error below 0.03.
    assert abs(accuracy([18, 19]) - 0.5) < 0.1
    assert accuracy(range(3)) > accuracy(range(7, 10)) > accuracy(range(15, 18)) > 0.7


@pytest.mark.parametrize("temperature", [0.2, 1.0, math.inf])
def test_two_completions_are_bradley_terry(temperature):
    """P(first is preferred) = σ((g₁ − g₂) / τ): 20,000 draws, error below 0.0036."""
    rng, golds = random.Random(0), [0.3, 0.1]
    wins = sum(
        simulated_ranks(golds, temperature=temperature, rng=rng) == [0, 1]
        for _ in range(20_000)
    )
    wanted = 1 / (1 + math.exp(-(golds[0] - golds[1]) / temperature))
    assert wins / 20_000 == pytest.approx(wanted, abs=4 * 0.0036)


def test_three_completions_are_plackett_luce():
    """P(1 before 0 before 2) = w₁/(w₀+w₁+w₂) · w₀/(w₀+w₂), with w = exp(g/τ)."""
    rng, golds, temperature = random.Random(0), [0.1, 0.3, -0.2], 0.5
    w = [math.exp(gold / temperature) for gold in golds]
    wanted = w[1] / sum(w) * w[0] / (w[0] + w[2])
    hits = sum(
        simulated_ranks(golds, temperature=temperature, rng=rng) == [1, 0, 2]
        for _ in range(20_000)
    )
    assert hits / 20_000 == pytest.approx(wanted, abs=4 * 0.0036)


def test_annotator_temperatures():
    temperatures = [annotator_temperature(a) for a in range(NUM_ANNOTATORS)]
    assert temperatures[0] == 0.08 and temperatures[17] == pytest.approx(0.32)
    assert temperatures[:18] == sorted(set(temperatures[:18]))
    assert temperatures[18:] == [math.inf, math.inf]


def test_oracle_accuracy():
    # Right, wrong, tied, right: 2.5 of 4.
    chosen, rejected = [1.0, 0.0, 0.5, -0.1], [0.0, 1.0, 0.5, -0.2]
    assert oracle_accuracy(chosen, rejected) == 2.5 / 4
    with pytest.raises(ValueError, match="no pairs"):
        oracle_accuracy([], [])
    with pytest.raises(ValueError, match="zip"):
        oracle_accuracy([1.0], [])


def test_unknown_split(tmp_path):
    with pytest.raises(DataError, match=r"Unknown split 'dev'.*\['train', 'test'\]"):
        load_tiny_reviews("prompts", "dev", data_dir=tmp_path)
