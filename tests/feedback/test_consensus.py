"""Consensus pairs: each item counts once, the crowd's order comes out, ties stay."""

import collections
import re

import numpy as np
import pytest
from feedback.crowds import crowd_rankings

from rlhf_jax.data import Ranking, Row, preferences, read_rows, write_rows
from rlhf_jax.data.sources import DataError
from rlhf_jax.errors import UserError
from rlhf_jax.feedback import (
    consensus_pairs,
    consensus_preferences,
    dawid_skene,
    ranking_pairs,
    ranking_votes,
    vote_weights,
)
from rlhf_jax.feedback.__main__ import main as command
from rlhf_jax.feedback.report import as_gold, as_votes, crowd_report


def say(who: int, *ranks: int, prompt: str = "p") -> Ranking:
    return Ranking(prompt, tuple("abcd"[: len(ranks)]), ranks, annotator=who)


def test_each_item_counts_once():
    rankings, _, _ = crowd_rankings(0, items=30, careful=5, careless=1)
    total = collections.defaultdict(float)
    for pair in consensus_preferences(rankings):
        total[pair.prompt] += pair.weight
        assert pair.weight > 0 and pair.annotator == -1
    assert len(total) == 30
    assert list(total.values()) == pytest.approx(30 * [1.0])


def test_agreed_orders_are_those_of_the_ranking():
    """Many who say the same: one row a pair, weighed as `ranking_pairs` does."""
    pairs = consensus_preferences([say(n, 1, 0, 2) for n in range(6)])
    wanted = ranking_pairs(say(0, 1, 0, 2))
    key = lambda p: (p.chosen, p.rejected)
    assert sorted(map(key, pairs)) == sorted(map(key, wanted))
    assert [p.weight for p in pairs] == pytest.approx(3 * [1 / 3])


def test_weights_are_shares_of_votes_by_hand():
    """Two people say the same of 40 items; the third contradicts them on ten."""
    said = []
    for n in range(40):
        ranks, other = ((0, 1), (1, 0))[:: 1 if n % 2 else -1]
        for who, own in ((0, ranks), (1, ranks), (2, ranks if n % 4 else other)):
            said.append(say(who, *own, prompt=f"p{n}"))
    judged = ranking_votes(said)
    model = dawid_skene(judged.votes)
    first, second, third = vote_weights(judged.votes, model)
    # κ = (0.75 − 0.5)/0.5 where the others are sure, and four items with κ = ½.
    assert third == pytest.approx(0.5**2, abs=0.01) and first == second > 2 * third
    weights = {(p.prompt, p.chosen): p.weight for p in consensus_pairs(judged, model)}
    assert weights["p1", "a"] == 1 and ("p1", "b") not in weights
    everybody = 2 * first + third
    assert weights["p4", "b"] == pytest.approx(2 * first / everybody)
    assert weights["p4", "a"] == pytest.approx(third / everybody)


def test_shares_by_loops():
    rankings, _, _ = crowd_rankings(4, items=25, careful=5, careless=2, completions=3)
    rng = np.random.default_rng(0)
    tied = [
        Ranking(r.prompt, r.completions, tuple(rng.integers(2, size=3)), r.annotator)
        for r in rankings[::4]
    ]
    rankings = [r for n, r in enumerate(rankings) if n % 4] + tied
    judged = ranking_votes(rankings)
    model = dawid_skene(judged.votes)
    weigh = dict(zip(judged.annotators, vote_weights(judged.votes, model), strict=True))
    found = {
        (p.prompt, p.chosen, p.rejected): p.weight
        for p in consensus_pairs(judged, model)
    }
    wanted = {}
    for prompt, first, second in judged.units:
        won = total = 0.0
        for r in rankings:
            if r.prompt == prompt:
                rank = dict(zip(r.completions, r.ranks, strict=True))
                ahead = (rank[first] < rank[second]) + 0.5 * (
                    rank[first] == rank[second]
                )
                won += weigh[r.annotator] * ahead
                total += weigh[r.annotator]
        share = won / total
        if share >= 0.01:
            wanted[prompt, first, second] = (1 if share > 0.99 else share) / 3
    assert found == pytest.approx(wanted)
    assert len({round(weight, 6) for weight in found.values()}) > 20


def test_a_near_tie_stays_one():
    """Three of five able people say a: 0.6 of the votes, and no surer than that."""
    said = [say(n, 0, 1, prompt=f"p{i}") for n in range(5) for i in range(60)]
    judged = ranking_votes([*said, *(say(n, n > 2, n < 3) for n in range(5))])
    model = dawid_skene(judged.votes)
    weights = [p.weight for p in consensus_pairs(judged, model) if p.prompt == "p"]
    assert weights == pytest.approx([0.6, 0.4], abs=0.02)
    assert model.posterior[-2].max() > 0.9  # of the true order it would be sure


def test_where_nobody_can_be_believed_all_votes_count_alike():
    """Two people are always against three others; on one item they are alone."""
    said = []
    for n in range(30):
        said += [say(who, 0, 1, prompt=f"p{n}") for who in range(3)]
        said += [say(who, 1, 0, prompt=f"p{n}") for who in (3, 4)]
    judged = ranking_votes([*said, say(3, 0, 1), say(4, 1, 0)])
    model = dawid_skene(judged.votes)
    assert vote_weights(judged.votes, model)[3:].tolist() == [0.001, 0.001]
    alone = [p.weight for p in consensus_pairs(judged, model) if p.prompt == "p"]
    assert alone == [0.5, 0.5]


@pytest.mark.fault(30)
def test_ties_are_shared_between_both_orders():
    """All tie a and b and put c last: a against b half and half, c clearly below."""
    pairs = consensus_preferences([say(n, 0, 0, 1) for n in range(5)])
    weights = {(p.chosen, p.rejected): p.weight for p in pairs}
    assert set(weights) == {("a", "b"), ("b", "a"), ("a", "c"), ("b", "c")}
    assert weights["a", "b"] == weights["b", "a"] == pytest.approx(1 / 6)
    assert weights["a", "c"] == pytest.approx(1 / 3)


def test_written_differently_it_is_the_same():
    first = [say(0, 0, 1, 2), say(1, 0, 2, 1), say(2, 1, 0, 2)]
    turned = [
        Ranking("p", r.completions[::-1], r.ranks[::-1], r.annotator) for r in first
    ]
    weights = lambda rankings: {
        (p.chosen, p.rejected): p.weight for p in consensus_preferences(rankings)
    }
    assert weights(first[:1] + turned[1:]) == pytest.approx(weights(first))
    assert weights(turned) == pytest.approx(weights(first))


def right(pairs, gold) -> float:
    """Weighted share of pairs whose order the truth shares."""
    wins = [gold[p.prompt, p.chosen] > gold[p.prompt, p.rejected] for p in pairs]
    return float(np.average(wins, weights=[p.weight for p in pairs]))


def readers_share(crowd, gold, unit) -> float:
    """How many of the careful prefer the first: the mean of σ((g_i − g_j)/τ)."""
    prompt, first, second = unit
    apart = gold[prompt, first] - gold[prompt, second]
    careful = [person.temperature for person in crowd if not person.careless]
    return float(np.mean([1 / (1 + np.exp(-apart / t)) for t in careful]))


def vote_shares(judged) -> np.ndarray:
    """Share of the votes on each unit for the first, all alike."""
    votes = judged.votes
    won = np.bincount(votes.unit, (1 + votes.value) / 2, len(votes.item))
    return won / np.bincount(votes.unit)


def test_shares_are_near_to_what_those_who_read_would_say():
    """With 20 % careless people nearer than without them; the posterior is not."""
    errors = []
    for seed in range(5):
        rankings, crowd, gold = crowd_rankings(
            seed, items=150, careful=8, careless=2, votes=5
        )
        alone = ranking_votes([r for r in rankings if not crowd[r.annotator].careless])
        judged = ranking_votes(rankings)
        model = dawid_skene(judged.votes)
        pairs = consensus_pairs(judged, model)
        found = {(p.prompt, p.chosen, p.rejected): p.weight * 6 for p in pairs}
        truth = np.array([readers_share(crowd, gold, unit) for unit in judged.units])
        own = np.array([readers_share(crowd, gold, unit) for unit in alone.units])
        errors.append(
            [
                np.mean((np.array(said) - true) ** 2)
                for said, true in (
                    ([found.get(unit, 0.0) for unit in judged.units], truth),
                    (vote_shares(alone), own),
                    (vote_shares(judged), truth),
                    (model.posterior[:, 1], truth),
                )
            ]
        )
    consensus, careful, everybody, posterior = np.mean(errors, axis=0)
    assert consensus < careful < 0.8 * min(everybody, posterior)


def test_the_likelier_order_is_as_often_right_as_that_of_careful_votes():
    """With 20 % careless people it is as good as their being away, and better."""
    found = []
    for seed in range(5):
        rankings, crowd, gold = crowd_rankings(seed, items=150, careful=8, careless=2)
        careful = [r for r in rankings if not crowd[r.annotator].careless]
        likelier = [p for p in consensus_preferences(rankings) if p.weight > 1 / 12]
        consensus = right(likelier, gold)
        raw, alone = (
            right([p for r in some for p in ranking_pairs(r)], gold)
            for some in (rankings, careful)
        )
        found.append((raw, consensus, alone))
    everybody, consensus, careful = np.mean(found, axis=0)
    assert consensus > everybody + 0.08 and consensus > careful


@pytest.mark.fault(30)
def test_rankings_without_an_annotator_are_refused():
    lost = Ranking("p", ("a", "b"), (0, 1), origin="votes.jsonl:3")
    with pytest.raises(DataError, match=r"votes.jsonl:3: no annotator"):
        consensus_preferences([say(0, 0, 1), lost])
    with pytest.raises(DataError, match="at least one ranking"):
        consensus_preferences([])


def test_alone_there_is_no_agreement():
    with pytest.raises(UserError, match="no item was judged by two annotators"):
        crowd_report(ranking_votes([say(0, 0, 1)]), rng=np.random.default_rng(0))


@pytest.fixture
def judged(tmp_path):
    """A file as the labelling page exports it, with columns that are left alone."""
    rankings, crowd, gold = crowd_rankings(2, items=100, careful=8, careless=2)
    rows = [
        {
            "item": r.prompt,
            "prompt": r.prompt,
            "completions": list(r.completions),
            "ranks": list(r.ranks),
            "annotator": r.annotator,
            "annotator_name": f"P{r.annotator}",
            "shown": [3, 1, 0, 2],
            "repeat": False,
            "seconds": 2.5,
        }
        for r in [*rankings, *rankings[:20]]  # twenty are judged twice
    ]
    write_rows(rows, tmp_path / "judged.jsonl")
    truth = []
    for prompt in [f"p{n}" for n in range(25)]:
        golds = {text: g for (p, text), g in gold.items() if p == prompt}
        texts = sorted(golds, key=golds.__getitem__, reverse=True)
        truth.append({"prompt": prompt, "completions": texts, "ranks": [0, 1, 2, 3]})
    write_rows(truth, tmp_path / "gold.jsonl")
    return tmp_path


def test_the_command(judged, capsys):
    paths = {name: str(judged / f"{name}.jsonl") for name in ("judged", "gold", "out")}
    options = ["--gold", paths["gold"], "--out", paths["out"], "--resamples", "100"]
    command(["agreement", paths["judged"], *options])
    shown = capsys.readouterr().out
    assert "Krippendorff's α" in shown and shown.count("careless") == 2
    lines = [line for line in shown.splitlines() if re.match(r" +(P?\d)", line)]
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines]
    assert cells[0][:3] == ["100", "300", "10"]
    assert [row[0] for row in cells[1:]] == [f"P{n} ({n})" for n in range(10)]
    gold = [float(row[4].split()[0]) for row in cells[1:]]
    assert min(gold[:8]) > 70 > 65 > max(gold[8:])
    assert sum(row[5] == "100 (" + row[5][5:] for row in cells[1:]) >= 8  # repeats
    pairs = preferences(read_rows(paths["out"]))
    assert sum(p.weight for p in pairs) == pytest.approx(100, abs=1e-3)


def test_the_command_s_complaints(judged):
    with pytest.raises(SystemExit, match=r"error: .*no.jsonl: no such file"):
        command(["agreement", str(judged / "no.jsonl")])
    options = ["--out", str(judged / "no" / "out.jsonl"), "--resamples", "10"]
    with pytest.raises(SystemExit, match=r"error: .*out.jsonl: cannot be written \("):
        command(["agreement", str(judged / "judged.jsonl"), *options])


def row(**values) -> Row:
    return Row(values, "votes.jsonl", 4)


def test_pairs_are_rankings_of_two():
    rows = [
        row(prompt="p", chosen="a", rejected="b", annotator=1),
        row(prompt="p", chosen="b", rejected="a", annotator=2),
        row(prompt="p", chosen="a", rejected="b", annotator=1),
    ]
    judged = as_votes(rows)
    assert judged.units == [("p", "a", "b"), ("p", "b", "a")]
    votes = judged.votes
    said = zip(votes.unit.tolist(), votes.annotator.tolist(), votes.value, strict=True)
    assert set(said) == {(0, 0, 1), (1, 0, -1), (0, 1, -1), (1, 1, 1)}
    assert judged.again.value.tolist() == [1, -1] and judged.annotators == [1, 2]
    with pytest.raises(DataError, match="votes.jsonl:4: no annotator"):
        as_votes([row(prompt="p", chosen="a", rejected="b")])
    assert as_gold([row(prompt="p", chosen="a", rejected="b")]).annotators == [0]


def ratings(column: str, values: list[list[float]]) -> list[Row]:
    """A row a completion, a column an annotator."""
    return [
        row(prompt="p", completion=f"c{n}", annotator=who, **{column: value})
        for n, said in enumerate(values)
        for who, value in enumerate(said)
    ]


@pytest.mark.parametrize("column", ["label", "rating"])
def test_ratings(tmp_path, capsys, column):
    rng = np.random.default_rng(0)
    truth = rng.integers(2, size=60)
    if column == "rating":
        truth = rng.integers(1, 6, size=60)
    guessed = rng.permutation(truth)
    values = np.stack([truth, truth, truth, guessed], axis=1).tolist()
    rows = ratings(column, values)
    write_rows([r.values for r in rows], tmp_path / "in.jsonl")
    write_rows([r.values for r in rows[:40]], tmp_path / "gold.jsonl")
    options = [str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl")]
    gold = ["--gold", str(tmp_path / "gold.jsonl"), "--resamples", "50"]
    command(["agreement", *options, *gold])
    shown = capsys.readouterr().out
    assert shown.count("careless") == 1 and shown.count("100 (72–100)") == 3
    found = read_rows(tmp_path / "out.jsonl")
    agreed = [r.values[column] for r in found]
    assert agreed == pytest.approx(truth.tolist(), abs=0.05)


def test_ratings_that_are_none():
    with pytest.raises(DataError, match="votes.jsonl:4: column 'rating': .* 'good'"):
        as_votes([row(prompt="p", completion="a", annotator=0, rating="good")])
    with pytest.raises(DataError, match="expected prompt and completion as text"):
        as_votes([row(prompt="p", completion="a", annotator="Ann", rating=1)])
    many = as_votes(ratings("rating", [[n, n / 2] for n in range(11)]))
    with pytest.raises(DataError, match="different values: expected at most 10"):
        crowd_report(many, rng=np.random.default_rng(0))
