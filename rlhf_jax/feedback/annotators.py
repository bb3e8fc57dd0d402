"""How reliable annotators are: Dawid and Skene's model, and who is careless.

Dawid & Skene 1979, doi:10.2307/2346806. Each unit has a true class that nobody sees;
each annotator has a table of how they vote on units of each class. EM finds both: who
agrees with those who agree with the others is believed more.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

from rlhf_jax.feedback.agreement import Interval, between, item_weights
from rlhf_jax.feedback.votes import Votes

RIGHT = 0.75  # of the votes that smoothing adds
ENOUGH = 10  # items by which an annotator can be named careless
LEAST_WEIGHT = 0.001  # of a vote: where nobody can be believed all count alike
TINY = 1e-300


class DawidSkene(NamedTuple):
    """What `dawid_skene` finds: A annotators, U units, C classes."""

    values: np.ndarray  # [C], the classes: the values that were voted for
    prior: np.ndarray  # [C], share of the units of each class
    confusion: np.ndarray  # [A, C, C]: P(a votes l | the class is j), by a, j, l
    log_joint: np.ndarray  # [U, C]: log P(class, votes on the unit)
    objectives: list[float]  # what EM raises, after each iteration

    @property
    def posterior(self) -> np.ndarray:
        """[U, C]: P(class | all votes on the unit)."""
        return _normalized(self.log_joint)


def dawid_skene(
    votes: Votes,
    *,
    smoothing: float = 4.0,
    tolerance: float = 1e-8,
    max_iterations: int = 1000,
) -> DawidSkene:
    """True classes and annotators' confusions by EM: P(votes) = Π_u Σ_j p_j Π π_ajl.

    Dawid & Skene 1979, doi:10.2307/2346806, equations 2.3 to 2.5: class shares p_j and
    P(annotator a votes l | class j) = π_ajl from the classes' posteriors, which begin
    as the shares of the votes (3.1), and the posteriors from them again. An annotator
    may vote on a unit several times. With ``smoothing`` s > 0 each π_aj has a Dirichlet
    prior: s votes are added, three quarters of them right, so that of an annotator of
    few votes not much is believed in either direction. What EM raises is then the
    log-likelihood + Σ s_jl log π_ajl; 0 is the paper.

    Args:
      votes: their distinct values are the classes. Every unit needs a vote.
      smoothing: s ≥ 0, in votes for each annotator and class.
      tolerance: stops when the objective rises by less, a vote.
      max_iterations: stops there at the latest.

    Returns:
      The model. The objective never falls from one iteration to the next.

    Raises:
      ValueError: there is a unit without a vote, or smoothing is negative.

    >>> from rlhf_jax.feedback import table_votes
    >>> good, bad = [1, 1, 0, 0, 1, 0], [0, 1, 1, 0, 1, 1]
    >>> found = dawid_skene(table_votes(np.array([good, good, bad]).T))
    >>> np.round(found.posterior[:, 1], 2).tolist()
    [0.93, 0.98, 0.06, 0.02, 0.98, 0.06]
    """
    units, people = len(votes.item), votes.annotator.max(initial=-1) + 1
    if units == 0 or np.bincount(votes.unit, minlength=units).min() < 1:
        raise ValueError("Dawid–Skene: expected at least one vote on every unit")
    if smoothing < 0:
        raise ValueError(f"smoothing = {smoothing}: expected 0 or more")
    values, vote = np.unique(votes.value, return_inverse=True)
    one_hot, extra = np.eye(len(values))[vote], _extra(len(values), smoothing)
    posterior, objectives = _sums(votes.unit, one_hot, units), []
    posterior /= posterior.sum(axis=1, keepdims=True)
    while True:
        # M: shares and confusions of the classes as they are thought to be.
        prior = posterior.mean(axis=0)
        told = posterior[votes.unit][:, :, None] * one_hot[:, None, :]
        tally = _sums(votes.annotator, told, people) + extra[None]
        confusion = tally / np.maximum(tally.sum(axis=2, keepdims=True), TINY)
        # E: the classes as those would have them.
        terms = _log(confusion)[votes.annotator, :, vote]
        log_joint = _log(prior)[None] + _sums(votes.unit, terms, units)
        posterior = _normalized(log_joint)
        likelihood = float(np.sum(logsumexp(log_joint, axis=1)))
        objectives.append(likelihood + float(np.sum(extra[None] * _log(confusion))))
        risen = objectives[-1] - objectives[-2] if len(objectives) > 1 else np.inf
        if risen < tolerance * len(vote) or len(objectives) >= max_iterations:
            break
    return DawidSkene(values, prior, confusion, log_joint, objectives)


class Reliability(NamedTuple):
    """What is known of an annotator."""

    votes: int
    ability: Interval  # κ with the consensus of the others
    careless: bool


def annotator_abilities(
    votes: Votes,
    model: DawidSkene,
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> list[Reliability]:
    """Each annotator's κ with the consensus of the others, and who is careless.

    Cohen 1960, doi:10.1177/001316446002000104: κ = (Pₒ − Pₑ)/(1 − Pₑ). Pₒ is the mean
    posterior, by the votes of the others, of what the annotator said; Pₑ what it would
    be if they had said the same at random. Guessing is 0, and so is saying always the
    same. Intervals are of a bootstrap over the annotator's items, the model as it is.

    **Careless** is whose interval ends below half of the median annotator's κ: nearer
    to guessing than to the crowd, whatever the draw of items. Who shares fewer than ten
    items with others is not named: a bootstrap of so few is too sure of itself. More
    than half of the crowd must be careful.

    Args:
      votes: those that the model was fitted to.
      model: of ``dawid_skene``.
      rng: where the draws come from; moved on.
      resamples: how often items are drawn.
      confidence: of the intervals.

    Returns:
      One an annotator, NaN and not careless where nobody else voted on their units.

    >>> from rlhf_jax.feedback import table_votes
    >>> rng = np.random.default_rng(0)
    >>> truth, coin = rng.integers(2, size=(2, 200))
    >>> votes = table_votes(np.stack([truth, truth, truth, coin], axis=1))
    >>> found = annotator_abilities(votes, dawid_skene(votes), rng=rng)
    >>> [x.careless for x in found], round(found[0].ability.value, 1)
    ([False, False, False, True], 1.0)
    """
    sums = _item_sums(votes, model)
    found = [_ability(own, rng, resamples, confidence) for own in sums]
    enough, counts = [len(own) >= ENOUGH for own in sums], np.bincount(votes.annotator)
    abilities = [x.value for x in found if np.isfinite(x.value)]
    half = np.median(abilities) / 2 if abilities else np.nan
    return [
        Reliability(int(count), ability, bool(known and ability.high < half))
        for count, ability, known in zip(counts, found, enough, strict=True)
    ]


def vote_weights(
    votes: Votes, model: DawidSkene, *, smoothing: float = 4.0
) -> np.ndarray:
    """What each annotator's votes count: w_a = max(0, (n_a κ_a + s/2)/(n_a + s))².

    No reference. Who reads a share κ of what they judge and guesses the rest says that
    i is better with probability ½ + κ (q − ½), where q is the share of those who read
    that would. The Fisher information of such a vote about q is 4κ² at q = ½, so a vote
    is worth κ². κ is that of ``annotator_abilities``, as if s items more had been
    judged with κ = ½, which is what ``dawid_skene`` expects of somebody unknown.

    Args:
      votes: those that the model was fitted to.
      model: of ``dawid_skene``.
      smoothing: s ≥ 0, in items.

    Returns:
      [A] float, 0.001 to 1, so that where nobody can be believed all count alike; ¼
      where κ is not defined, as of who shares no unit.

    Raises:
      ValueError: smoothing is negative.

    >>> from rlhf_jax.feedback import table_votes
    >>> truth, coin = np.random.default_rng(0).integers(2, size=(2, 200))
    >>> votes = table_votes(np.stack([truth, truth, truth, coin], axis=1))
    >>> np.round(vote_weights(votes, dawid_skene(votes)), 2).tolist()
    [0.98, 0.98, 0.98, 0.01]
    """
    if smoothing < 0:
        raise ValueError(f"smoothing = {smoothing}: expected 0 or more")
    abilities = []
    for own in _item_sums(votes, model):
        kappa = float(_kappa(own.sum(axis=0))) if len(own) else np.nan
        total = len(own) * kappa + smoothing / 2
        abilities.append(total / (len(own) + smoothing) if np.isfinite(kappa) else 0.5)
    return np.maximum(np.maximum(abilities, 0.0) ** 2, LEAST_WEIGHT)


def _item_sums(votes: Votes, model: DawidSkene) -> list[np.ndarray]:
    """Of each annotator, over votes that others share: see `_ability`."""
    _, vote = np.unique(votes.value, return_inverse=True)
    shared = np.bincount(votes.unit, minlength=len(votes.item))[votes.unit] > 1
    own = _log(model.confusion)[votes.annotator, :, vote]
    others = _normalized(
        np.where(shared[:, None], model.log_joint[votes.unit] - own, 0.0)
    )
    one_hot = np.eye(len(model.values))[vote]
    rows = np.column_stack([np.ones(len(vote)), one_hot, others, one_hot * others])
    item, found = votes.item[votes.unit], []
    for a in range(len(np.bincount(votes.annotator))):
        kept = shared & (votes.annotator == a)
        _, own_item = np.unique(item[kept], return_inverse=True)
        found.append(_sums(own_item, rows[kept], own_item.max(initial=-1) + 1))
    return found


def _ability(
    sums: np.ndarray, rng: np.random.Generator, resamples: int, confidence: float
) -> Interval:
    """κ of sums over items [items, 1 + 3C]: votes, said, thought by others, both."""
    if not len(sums):
        return Interval(np.nan, np.nan, np.nan)
    draws = _kappa(item_weights(len(sums), rng, resamples) @ sums)
    return between(float(_kappa(sums.sum(axis=0))), draws, confidence)


def _kappa(sums: np.ndarray) -> np.ndarray:
    votes, rest = sums[..., :1], sums[..., 1:]
    said, thought, both = np.split(rest / votes, 3, axis=-1)
    observed, by_chance = both.sum(axis=-1), np.sum(said * thought, axis=-1)
    varied = by_chance < 1
    return np.where(
        varied, (observed - by_chance) / np.where(varied, 1 - by_chance, 1), np.nan
    )


def _extra(classes: int, smoothing: float) -> np.ndarray:
    """[C, C]: votes that are added, RIGHT of them on the diagonal."""
    if classes == 1:
        return np.full((1, 1), smoothing)
    wrong = smoothing * (1 - RIGHT) / (classes - 1)
    return np.where(np.eye(classes, dtype=bool), smoothing * RIGHT, wrong)


def _sums(at: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """[count, …]: sums of those rows [M, …] whose ``at`` [M] is 0, 1, …"""
    flat = rows.reshape(len(rows), math.prod(rows.shape[1:])).T
    sums = [np.bincount(at, weights=column, minlength=count) for column in flat]
    return np.stack(sums, axis=1).reshape(count, *rows.shape[1:])


def _log(share: np.ndarray) -> np.ndarray:
    """Finite for what nobody ever does, so that a vote can be taken out again."""
    return np.log(np.maximum(share, TINY))


def _normalized(log_joint: np.ndarray) -> np.ndarray:
    return np.exp(log_joint - logsumexp(log_joint, axis=1, keepdims=True))
