"""What the rounds of the loop have shown: measures, a table, a picture."""

import functools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from experiments.crowd_report import tidy
from rlhf_jax.data import (
    Demonstration,
    Preference,
    batches,
    collate_demonstrations,
    tokenize_demonstrations,
)
from rlhf_jax.models import score_apply
from rlhf_jax.rewards import sequence_scores
from rlhf_jax.rundir import load_json
from rlhf_jax.stages import load_stage, pad_id
from rlhf_jax.terminal import print_table

BATCH = 64  # texts that are scored at a time
HIGH = 0.9  # a text is high that scores more than this share of the labelled ones

COLUMNS = (
    "round",
    "rankings so far",
    "pairs unseen",
    "pairs both high",
    "right by people: old → new",
    "by the truth: old → new",
    "learned reward",
    "gold",
    "KL (nats)",
    "distinct",
)

Result = dict[str, Any]
Numbers = Mapping[str, float | None]  # of a seed and round; None where nobody knows
Answer = tuple[str, str]  # prompt and completion


def measure(
    reward: Path,
    fresh: Sequence[Preference],
    true: Sequence[Preference],
    learned: Sequence[Preference],
) -> Result:
    """How often a reward model is right on pairs that it did not learn from.

    Args:
      reward: its run directory.
      fresh: what people prefer among samples; both orders of a pair, weighed by their
        probabilities, where people differ.
      true: what the truth prefers among the same samples; none where it is not known.
      learned: what the reward model learned from.

    Returns:
      ``labels`` and ``truth``, the accuracies; ``unseen``, the share of fresh pairs of
      two texts that it never saw; ``high``, the share of those whose texts both score
      more than nine in ten of the texts that it did see.
    """
    seen = _answers(learned)
    scores = score(reward, [*seen, *_answers(fresh), *_answers(true)])
    limit = float(np.quantile([scores[answer] for answer in seen], HIGH))
    texts = {text for _, text in seen}
    both = {tuple(sorted(_answers([pair]))) for pair in fresh}
    unseen = [not any(text in texts for _, text in pair) for pair in both]
    high = [all(scores[answer] > limit for answer in pair) for pair in both]
    return {
        "labels": accuracy(fresh, scores),
        "truth": accuracy(true, scores) if true else None,
        "unseen": statistics.fmean(unseen),
        "high": statistics.fmean(high),
    }


def accuracy(pairs: Sequence[Preference], scores: dict[Answer, float]) -> float:
    """Share of the pairs' weight whose chosen side scores more; a tie counts half."""
    right = [
        (np.sign(scores[p.prompt, p.chosen] - scores[p.prompt, p.rejected]) + 1) / 2
        for p in pairs
    ]
    return float(np.average(right, weights=[pair.weight for pair in pairs]))


def score(reward: Path, answers: Iterable[Answer]) -> dict[Answer, float]:
    """What a reward model says of prompts and their completions."""
    judge, asked = load_stage(reward, "reward", option="reward"), dict.fromkeys(answers)
    most, pad = judge.model.max_length, pad_id(judge.tokenizer)
    texts = [Demonstration(*answer) for answer in asked]
    ids, _ = tokenize_demonstrations(texts, judge.tokenizer, max_length=most)
    collate = functools.partial(collate_demonstrations, length=most, pad_id=pad)
    params, score_fn = judge.whole(), score_apply(judge.model)
    scores_of, found = jax.jit(functools.partial(sequence_scores, score_fn)), []
    for batch, real in batches(ids, BATCH, collate):
        found += np.asarray(scores_of(params, batch))[real, 0].tolist()
    return dict(zip(asked, found, strict=True))


def _answers(pairs: Iterable[Preference]) -> list[Answer]:
    """Both sides of all pairs, each once."""
    sides = [(p.prompt, text) for p in pairs for text in (p.chosen, p.rejected)]
    return list(dict.fromkeys(sides))


def read_result(folder: Path) -> Result:
    """What a round's stages have found."""
    files = {name: folder / f"{name}.json" for name in ("stale", "fresh", "ppo")}
    return {name: load_json(path) for name, path in files.items() if path.exists()}


def values(result: Result) -> Numbers:
    """A round's numbers by column."""
    stale = result.get("stale", {})
    found = {f"stale/{name}": value for name, value in stale.items()}
    found |= {f"fresh/{name}": value for name, value in result["fresh"].items()}
    # What is new to the reward model that the round found, not to the one it left.
    found |= {"unseen": stale.get("unseen"), "high": stale.get("high")}
    found |= {k.removeprefix("after/"): v for k, v in result["ppo"].items()}
    return {"round": result["round"], "labels": result["labels"]} | found


def start(result: Result) -> Numbers:
    """What the SFT policy was like, by the reward model of the first round."""
    found = {k.removeprefix("before/"): v for k, v in result["ppo"].items()}
    return {"round": 0, "labels": 0} | found


def curves(results: Sequence[Result]) -> dict[int, list[Numbers]]:
    """The numbers of each round, a dict a seed; round 0 is the SFT policy."""
    found = {0: [start(r) for r in results if r["round"] == 1]}
    for result in results:
        found.setdefault(result["round"], []).append(values(result))
    return found


def report(results: list[Result], run_dir: Path) -> list[Result]:
    """The rounds as a table and a picture, if there are any; they are passed on."""
    if not results:
        return results
    table, picture = run_dir / "table.md", run_dir / "loop.png"
    show(results, table)
    draw(results, picture)
    print(f"table: {table}  picture: {picture}")
    return results


def show(results: Sequence[Result], path: Path) -> None:
    """A row a round, means over seeds, on the terminal and as Markdown."""
    rows = [_cells(number, own) for number, own in curves(results).items()]
    print_table("Rounds of samples, labels, reward model and PPO", COLUMNS, rows)
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    path.write_text(text, encoding="utf-8")


def _cells(number: int, own: Sequence[Numbers]) -> list[str]:
    def mean(name: str, form: str) -> str:
        known = [v for numbers in own if (v := numbers.get(name)) is not None]
        return format(statistics.mean(known), form) if known else "–"

    def old_new(by: str) -> str:
        old, new = mean(f"stale/{by}", ".3f"), mean(f"fresh/{by}", ".3f")
        return "–" if old == new == "–" else f"{old} → {new}"

    golds = [v for numbers in own if (v := numbers.get("gold")) is not None]
    spread = f" ± {statistics.stdev(golds):.2f}" if len(golds) > 1 else ""
    return [
        str(number) if number else "SFT",
        mean("labels", ",.0f"),
        mean("unseen", ".0%"),
        mean("high", ".0%"),
        old_new("labels"),
        old_new("truth"),
        mean("reward", ".2f"),
        mean("gold", ".2f") + spread,
        mean("kl", ".1f"),
        mean("distinct", ".2f"),
    ]


def draw(results: Sequence[Result], path: Path) -> None:
    """The rounds from left to right: truth, reward models, what PPO was after."""
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    figure = Figure(figsize=(13, 4.2), layout=layout)
    left, middle, right = figure.subplots(1, 3)
    found = curves(results)
    last = max(found)
    truth = any(v.get("fresh/truth") is not None for own in found.values() for v in own)
    by, whom = ("truth", "the truth") if truth else ("labels", "people")
    _line(left, found, "gold", "C0")
    left.set_title("Gold score of the policy", loc="left")
    _line(middle, found, f"stale/{by}", "C3", "the old reward model")
    _line(middle, found, f"fresh/{by}", "C0", "the new one")
    middle.set_title(f"Fresh samples ordered as by {whom}", loc="left")
    middle.set_ylabel("share of the held-out pairs")
    middle.legend(frameon=False, fontsize=9)
    _line(right, found, "reward", "C1")
    right.set_title("Learned reward of the policy", loc="left")
    right.set_ylabel("by the round's reward model; SFT policy: 0 ± 1")
    for axes in (left, middle, right):
        axes.set_xticks(range(last + 1), ["SFT", *map(str, range(1, last + 1))])
        axes.set_xlim(-0.2, last + 0.2)
        axes.set_xlabel("round (thin: seeds, thick: their mean)", fontsize=9)
        tidy(axes)
    middle.set_xlim(0.8, last + 0.2)
    figure.savefig(path, dpi=100)


def _line(axes: Axes, found: Any, name: str, colour: str, label: str = "") -> None:
    """A thin line a seed, and a thick one through the means."""
    rounds = {
        number: [v[name] for v in own]
        for number, own in found.items()
        if own and all(v.get(name) is not None for v in own)
    }
    if not rounds:
        return
    for seed in range(min(map(len, rounds.values()))):
        own = [values[seed] for values in rounds.values()]
        thin = {"alpha": 0.35, "markersize": 4, "linewidth": 0.8}
        axes.plot(list(rounds), own, "o-", color=colour, **thin)
    means = [statistics.mean(values) for values in rounds.values()]
    axes.plot(list(rounds), means, "-", color=colour, linewidth=2, label=label)
