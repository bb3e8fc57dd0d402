"""Rankings to pairs."""

import itertools
import random

import pytest

from rlhf_jax.data import Preference, Ranking
from rlhf_jax.feedback import ranking_labels, ranking_pairs


def test_by_hand():
    # b is best, a and d tie, c is worst: b>a, b>d, b>c, a>c, d>c; not a and d.
    ranking = Ranking(
        "p", ("a", "b", "c", "d"), (1, 0, 2, 1), annotator=4, origin="x:1"
    )
    pairs = ranking_pairs(ranking)
    assert {(p.chosen, p.rejected) for p in pairs} == {
        ("b", "a"), ("b", "d"), ("b", "c"), ("a", "c"), ("d", "c"),
    }  # fmt: skip
    assert len(pairs) == 5
    assert pairs[0] == Preference("p", "b", "a", annotator=4, weight=0.2)
    assert {p.origin for p in pairs} == {"x:1"}


@pytest.mark.fault(30)
def test_all_tied():
    assert ranking_pairs(Ranking("p", ("a", "b"), (0, 0))) == []


@pytest.mark.parametrize("seed", range(20))
def test_against_a_loop_over_all_ordered_pairs(seed):
    rng = random.Random(seed)
    ranks = [rng.randrange(4) for _ in range(rng.randint(2, 7))]
    ids = tuple((i, 2) for i in range(len(ranks)))  # token ids do as well
    wanted = {
        (ids[i], ids[j])
        for i, j in itertools.permutations(range(len(ranks)), 2)
        if ranks[i] < ranks[j]
    }
    pairs = ranking_pairs(Ranking((1,), ids, tuple(ranks)))
    assert {(p.chosen, p.rejected) for p in pairs} == wanted
    assert len(pairs) == len(wanted)
    # Each prompt counts once.
    assert sum(p.weight for p in pairs) == pytest.approx(1.0 if wanted else 0.0)


def test_one_rank_a_completion():
    with pytest.raises(ValueError, match="zip"):
        ranking_pairs(Ranking("p", ("a", "b"), (0,)))


def test_labels_say_who_beats_more_than_half():
    # Ranks 0, 1, 1, 2: the two in the middle win once, lose once and tie once.
    ranking = Ranking("p", ("b", "a", "c", "d"), (1, 0, 1, 2), origin="file:3")
    found = [(x.prompt, x.completion, x.label) for x in ranking_labels(ranking)]
    assert found == [("p", "a", 1), ("p", "d", 0)]
    assert {x.origin for x in ranking_labels(ranking)} == {"file:3"}


@pytest.mark.parametrize("seed", range(10))
def test_labels_against_a_loop(seed):
    rng = random.Random(seed)
    ranks = tuple(rng.randrange(4) for _ in range(rng.randint(2, 7)))
    wanted = []
    for i, rank in enumerate(ranks):
        others = ranks[:i] + ranks[i + 1 :]
        wins = sum(1.0 if rank < r else 0.5 if rank == r else 0.0 for r in others)
        if wins != len(others) / 2:
            wanted.append((i, int(wins > len(others) / 2)))
    completions = tuple(map(str, range(len(ranks))))
    labels = ranking_labels(Ranking("p", completions, ranks))
    assert [(int(x.completion), x.label) for x in labels] == wanted
