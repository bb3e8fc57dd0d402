"""What people say of a round's completions, and what all of them agree on."""

import random
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.loop_round import Round, write_once
from experiments.simulation import Judgement, Person, gold_pairs, judge
from rlhf_jax.data import Preference, Ranking, Row, preferences, rankings, read_rows
from rlhf_jax.errors import UserError
from rlhf_jax.feedback import consensus_preferences, ranking_pairs


def simulated_labels(
    this: Round, crowd: Sequence[Person], votes: int
) -> list[Judgement]:
    """Each item ranked by some of a crowd, each of whom has randomness of their own."""
    name = f"loop/{this.seed}/{this.number}"
    shared_out, asked = random.Random(name), [[] for _ in crowd]
    for row in read_rows(this.here / "completions.jsonl"):
        for who in shared_out.sample(range(len(crowd)), votes):
            asked[who].append(row)
    found = []
    for who, person in enumerate(crowd):
        own = random.Random(f"{name}/{who}")
        said = judge(asked[who], [person], votes=1, rng=own)
        found += [judgement | {"annotator": who} for judgement in said]
    return found


def waited_for(folder: Path, annotators: Sequence[str], votes: int) -> bool:
    """Whether people have labelled a round; if not, says what to do until they have."""
    run, completions = folder / "labels", folder / "completions.jsonl"
    if (folder / "labels.jsonl").exists() or (run / "rankings.jsonl").exists():
        return True
    page, names = "python -m rlhf_jax.feedback", shlex.join(annotators)
    quoted, asked = shlex.quote(str(run)), shlex.quote(str(completions))
    print(
        f"{completions} waits for people: serve it, export what they say, resume\n\n"
        f"  {page} serve --completions {asked} --annotators {names} --votes {votes} "
        f"--run-dir {quoted}\n"
        f"  {page} export {quoted}\n"
        f"  {page} agreement {quoted}/rankings.jsonl\n\n"
        "then the same command again, with --resume"
    )
    return False


def people_s_labels(folder: Path) -> list[dict[str, Any]]:
    """What people said on the page, if it is of this round's completions."""
    exported, completions = (
        folder / "labels/rankings.jsonl",
        folder / "completions.jsonl",
    )
    asked = {
        (row.values["prompt"], frozenset(row.values["completions"]))
        for row in read_rows(completions)
    }
    rows = read_rows(exported)
    judged = {
        (ranking.prompt, frozenset(ranking.completions)): ranking.origin
        for ranking in rankings(rows)
    }
    for item, origin in judged.items():
        if item not in asked:
            raise UserError(
                f"{origin}: not of the completions in {completions}; export the labels "
                "of this round's page"
            )
    print(f"{exported}: {len(judged)} of {len(asked)} items are judged")
    return [row.values for row in rows]


def write_pairs(this: Round, held_out: float) -> int:
    """Writes what the labels of all rounds so far agree on, and the truth of this one.

    ``learned.jsonl`` has pairs of all rounds; ``held_out.jsonl`` and ``truth.jsonl``
    those of this round's first prompts, which no round learns from. Returns how many
    rankings there are.
    """
    rounds = [this.root / f"round{n}" for n in range(1, this.number + 1)]
    kept = [held_out_rows(folder, held_out) for folder in rounds]
    all_kept = {row.values["prompt"] for rows in kept for row in rows}
    own = {row.values["prompt"] for row in kept[-1]}
    said = [row for folder in rounds for row in read_rows(folder / "labels.jsonl")]
    agreed = agreed_pairs(said)
    parts = {
        "learned": [pair for pair in agreed if pair.prompt not in all_kept],
        "held_out": [pair for pair in agreed if pair.prompt in own],
    }
    for name, pairs in parts.items():
        if not pairs:
            raise UserError(
                f"{this.here / 'labels.jsonl'}: no better and worse completion of a "
                f"prompt for {name}.jsonl; take the file away and label more"
            )
        write_once(this.here / f"{name}.jsonl", as_rows, pairs)
    true = gold_pairs(row for row in kept[-1] if "golds" in row.values)
    if true:  # else nobody knows it, or it cannot tell any two apart
        write_once(this.here / "truth.jsonl", lambda: true)
    return len(said)


def read_pairs(folder: Path) -> list[list[Preference]]:
    """A round's pairs: held out, those of the truth, and learned from."""
    files = (folder / f"{name}.jsonl" for name in ("held_out", "truth", "learned"))
    return [preferences(read_rows(p)) if p.exists() else [] for p in files]


def held_out_rows(folder: Path, share: float) -> list[Row]:
    """The first of a round's completions; their order is random."""
    rows = read_rows(folder / "completions.jsonl")
    return rows[: max(1, round(share * len(rows)))]


def agreed_pairs(rows: Sequence[Row]) -> list[Preference]:
    """What several annotators prefer together; the pairs as they are of one each."""
    said: dict[Any, Ranking] = {}  # the first time, where somebody was asked again
    for ranking in rankings(rows):
        item = ranking.prompt, frozenset(ranking.completions)
        said.setdefault((item, ranking.annotator), ranking)
    if len({item for item, _ in said}) < len(said):
        return consensus_preferences(list(said.values()))
    return [pair for ranking in said.values() for pair in ranking_pairs(ranking)]


def as_rows(pairs: Iterable[Preference]) -> list[dict[str, Any]]:
    """Pairs as a file has them."""
    return [
        {
            "prompt": pair.prompt,
            "chosen": pair.chosen,
            "rejected": pair.rejected,
            "weight": round(pair.weight, 6),
        }
        for pair in pairs
    ]
