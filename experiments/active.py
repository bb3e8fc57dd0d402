"""Active choice: people are asked about the pairs that reward models disagree about.

  python -m experiments.active
  python -m experiments.active --seeds 0 --rounds 4
  python -m experiments.active --repeated 0 --run-dir runs/active_plain

An ensemble of reward models is trained on some labelled pairs, says which pairs of a
pool it disagrees about (Christiano et al. 2017, arXiv:1706.03741, section 2.2.4), gets
labels for those, and is trained again. Beside it another that is given pairs at random.

The pool is like what a policy says: much of it is the same again. Nine in ten of its
pairs are of reviews that have four of the grammar's twenty opinion words; those with
the others are rare. The held-out pairs, which the truth orders, have all words alike.
With --repeated 0 the pool is like those. Labels come from a simulated person who sees
the truth through a little noise.

The table is printed and written to table.md, the picture to active.png;
docs/feedback.md has the numbers.
"""

import dataclasses
import random
import statistics
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from experiments import cli
from experiments.compare import keep, keep_compiled
from experiments.crowd import tidy
from experiments.ensemble import Ensemble, Pairs, draw_rows, make_ensemble
from rlhf_jax.data import (
    Preference,
    collate_preferences,
    tokenize_preferences,
    train_tokenizer,
)
from rlhf_jax.data.grammar import ADJECTIVES, POLARITY, gold_sentiment, sample_review
from rlhf_jax.data.tiny_reviews import COOLEST, simulated_ranks, split_prompts
from rlhf_jax.errors import UserError
from rlhf_jax.feedback import choose_pairs
from rlhf_jax.models import TransformerConfig
from rlhf_jax.optim import OptimConfig
from rlhf_jax.rundir import create_run_dir, load_json
from rlhf_jax.terminal import print_table

Choice = Literal["random", "active"]
CHOICES: tuple[Choice, ...] = ("random", "active")
COMMON = ("liked", "disliked"), ("good", "bad")  # verbs and adjectives, warm and cold

Result = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Config:
    """Labels for the pairs that teach most."""

    run_dir: Path = Path("runs/active")
    """Where results, the table and the picture go."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the pool, the labels and the training."""
    pool: int = 1_500
    """Pairs that could be labelled."""
    repeated: float = 0.9
    """Share of the pool's pairs that have the common words alone."""
    first: int = 60
    """Labels before the first choice, at random."""
    each: int = 60
    """Labels of a round."""
    rounds: int = 5
    """Rounds after the first labels."""
    eval_pairs: int = 1_000
    """Held-out pairs."""
    members: int = 3
    """Reward models of the ensemble."""
    updates: int = 100
    """Of each model in each round, from new parameters on."""
    batch_size: int = 32
    """Pairs an update."""
    optim: OptimConfig = OptimConfig(learning_rate=3e-3, schedule="cosine", warmup=20)
    """Optimiser and schedule."""
    model: TransformerConfig = TransformerConfig(
        vocab_size=400,
        d_model=32,
        n_layers=1,
        n_heads=2,
        n_kv_heads=2,
        d_head=16,
        d_ff=64,
        max_length=64,
    )
    """Each reward model."""

    def __post_init__(self):
        asked = self.first + self.rounds * self.each
        if not 0 < self.first <= asked <= self.pool:
            raise UserError(
                f"first + rounds · each = {asked}: expected at most pool = {self.pool}"
            )
        if not 0 <= self.repeated <= 1:
            raise UserError(f"repeated = {self.repeated}: expected a share, 0 to 1")


def main(config: Config) -> list[Result]:
    """Finds the curves that are not there yet, and shows all."""
    run_dir = create_run_dir(config.run_dir, config, resume=True)
    keep_compiled(run_dir / "compiled")
    results = []
    for seed in config.seeds:
        for choice in CHOICES:
            path = run_dir / f"{choice}{seed}.json"
            keep(path, find_curve, config, choice, seed)
            results.append(load_json(path))
    share = show(results, run_dir / "table.md")
    draw(results, share, run_dir / "active.png")
    print(f"table: {run_dir / 'table.md'}  picture: {run_dir / 'active.png'}")
    return results


class Pool(NamedTuple):
    """Pairs as tokens, with what a person would say of them."""

    pairs: Pairs  # [N, T]
    labels: np.ndarray  # [N] int, 1: the first is better


def find_curve(config: Config, choice: Choice, seed: int) -> Result:
    """Held-out accuracy of the ensemble's mean, after each round's labels."""
    pool, held_out, model = make_pools(config, seed)
    ensemble = make_ensemble(
        model, config.optim, members=config.members, updates=config.updates
    )
    rng = np.random.default_rng([seed, CHOICES.index(choice)])
    first = np.random.default_rng(seed).permutation(config.pool)[: config.first]
    asked = np.isin(np.arange(config.pool), first)
    found: Result = {"choice": choice, "seed": seed, "labels": [], "accuracy": []}
    for number in range(config.rounds + 1):
        shape = (config.updates, config.members, config.batch_size)
        rows = draw_rows(np.flatnonzero(asked), shape, rng)
        key = jax.random.fold_in(jax.random.key(seed), number)
        params = ensemble.fit(pool.pairs, pool.labels, rows, key)
        mean = scores(ensemble, params, held_out).mean(axis=0)
        right = (mean[:, 0] > mean[:, 1]) == (held_out.labels > 0)
        found["labels"].append(int(asked.sum()))
        found["accuracy"].append(float(right.mean()))
        print(f"{choice}, seed {seed}: {asked.sum()} labels, {right.mean():.3f}")
        if choice == "active":
            both = scores(ensemble, params, pool)
            asked[choose_pairs(both, config.each, asked=asked)] = True
        else:
            free = np.flatnonzero(~asked)
            asked[rng.choice(free, config.each, replace=False)] = True
    return found


def scores(ensemble: Ensemble, params: Any, pool: Pool) -> np.ndarray:
    """[M, N, 2] of both completions."""
    sides = [ensemble.score(params, side) for side in pool.pairs]
    return np.stack(jax.device_get(sides), axis=-1)


def make_pools(config: Config, seed: int) -> tuple[Pool, Pool, TransformerConfig]:
    """What can be labelled, what is held out, and the model with its vocabulary."""
    rng = random.Random(f"active/{seed}")
    repeated = round(config.repeated * config.pool)
    asked = [make_pair(rng, "train", common=n < repeated) for n in range(config.pool)]
    rng.shuffle(asked)
    held_out = [make_pair(rng, "test", common=False) for _ in range(config.eval_pairs)]
    tokenizer = train_tokenizer(
        (p.prompt + text for p in asked for text in (p.chosen, p.rejected)),
        config.model.vocab_size,
    )

    def tokens(pairs: list[Preference[str]], temperature: float) -> Pool:
        ids, _ = tokenize_preferences(
            pairs, tokenizer, max_length=config.model.max_length, too_long="error"
        )
        sides = [p.prompt + text for p in ids for text in (p.chosen, p.rejected)]
        length, pad = max(map(len, sides)), tokenizer.pad_token_id
        batch = collate_preferences(ids, length=length, pad_id=pad)
        golds = [[gold_sentiment(t) for t in (p.chosen, p.rejected)] for p in pairs]
        ranks = [simulated_ranks(g, temperature=temperature, rng=rng) for g in golds]
        labels = np.array([first < second for first, second in ranks], np.int32)
        return Pool(Pairs(batch.chosen, batch.rejected), labels)

    model = dataclasses.replace(config.model, vocab_size=len(tokenizer))
    return tokens(asked, COOLEST), tokens(held_out, 1e-6), model


def make_pair(rng: random.Random, split: str, *, common: bool) -> Preference[str]:
    """Two reviews of unequal sentiment, in random order."""
    while True:
        texts = [make_review(rng, common=common) for _ in range(2)]
        if gold_sentiment(texts[0]) != gold_sentiment(texts[1]):
            return Preference(rng.choice(PROMPTS[split]), *texts)


def make_review(rng: random.Random, *, common: bool) -> str:
    """A review, all its opinions in the common words if that is asked for."""
    words = sample_review(rng).split(" ")
    if common:
        words = [
            COMMON[word in ADJECTIVES][POLARITY[word] < 0] if word in POLARITY else word
            for word in words
        ]
    return " ".join(words)


PROMPTS = {split: split_prompts(split) for split in ("train", "test")}


def needed(labels: list[int], accuracy: list[float], wanted: float) -> float:
    """Labels at which a curve first reaches an accuracy, between its points linearly.

    >>> needed([40, 80, 120], [0.6, 0.8, 0.9], 0.85)
    100.0
    """
    for i, reached in enumerate(accuracy):
        if reached >= wanted:
            if i == 0:
                return float(labels[0])
            step = (wanted - accuracy[i - 1]) / (reached - accuracy[i - 1])
            return labels[i - 1] + step * (labels[i] - labels[i - 1])
    return float("inf")


def curve(results: list[Result], choice: Choice) -> tuple[list[int], np.ndarray]:
    """(labels, accuracy [seeds, rounds]) of a choice."""
    own = [r for r in results if r["choice"] == choice]
    return own[0]["labels"], np.array([r["accuracy"] for r in own])


def show(results: list[Result], path: Path) -> float:
    """The table; returns the share of the labels that active choice needs."""
    labels, at_random = curve(results, "random")
    _, active = curve(results, "active")
    rows = [
        [
            f"{count}",
            *(
                f"{own.mean():.3f}"
                + (f" ± {statistics.stdev(own):.3f}" if len(own) > 1 else "")
                for own in (at_random[:, i].tolist(), active[:, i].tolist())
                for own in [np.array(own)]
            ),
        ]
        for i, count in enumerate(labels)
    ]
    columns = ["labels", "at random", "by disagreement"]
    print_table("Accuracy on held-out pairs, mean of seeds", columns, rows)
    wanted = float(at_random.mean(axis=0)[-1])
    share = needed(labels, active.mean(axis=0).tolist(), wanted) / labels[-1]
    each = [
        needed(labels, own.tolist(), float(other[-1])) / labels[-1]
        for own, other in zip(active, at_random, strict=True)
    ]
    print(
        f"By disagreement {share:.0%} of the labels are enough for what "
        f"{labels[-1]} at random give ({wanted:.3f}); each seed: "
        + ", ".join(f"{x:.0%}" for x in each)
    )
    lines = [columns, ["---"] * 3, *rows]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return share


def draw(results: list[Result], share: float, path: Path) -> None:
    """Both curves: each seed pale, their mean bold."""
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    figure = Figure(figsize=(7.5, 4.6), layout=layout)
    axes = figure.subplots()
    names = {"random": "at random", "active": "by disagreement"}
    for colour, choice in zip(("0.45", "C0"), CHOICES, strict=True):
        labels, accuracy = curve(results, choice)
        for own in accuracy:
            axes.plot(labels, own, color=colour, linewidth=0.8, alpha=0.4)
        mean = accuracy.mean(axis=0)
        axes.plot(labels, mean, "o-", color=colour, markersize=4, label=names[choice])
    labels, accuracy = curve(results, "random")
    axes.axhline(accuracy.mean(axis=0)[-1], color="0.45", linewidth=1, linestyle="--")
    if np.isfinite(share):
        axes.axvline(share * labels[-1], color="C0", linewidth=1, linestyle="--")
    axes.set_xlabel("labelled pairs")
    axes.set_ylabel("accuracy on held-out pairs, by the truth")
    axes.set_title("Which pairs people are asked about", loc="left")
    axes.legend(frameon=False)
    tidy(axes)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
