"""Reviews with manners, and an assistant's work on them: what a constitution acts on.

A review of TinyReviews is made courteous by an opener, rude by a clause, or both, or
neither. The assistant is shown to write reviews of all kinds, to criticise and revise
them as asked, and to answer which of two is better in some respect; which respect it
should care about is for a constitution to say.
"""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments import sft
from experiments.inputs import DataConfig
from rlhf_jax.data import write_rows
from rlhf_jax.data.grammar import sample_review
from rlhf_jax.data.tiny_reviews import split_prompts
from rlhf_jax.feedback.constitution import Constitution, read_constitution
from rlhf_jax.models import TransformerConfig

OPENERS = ("to be fair", "in my view", "i am sorry but", "with respect")
INSULTS = ("what rubbish", "only fools like it", "shame on you", "it is all trash")
COURTEOUS, RUDE = 0.35, 0.45  # shares of the reviews that are shown


class Manners(NamedTuple):
    """How a review is put."""

    courteous: bool
    rude: bool


def manners(text: str) -> Manners:
    """How any text is put, a policy's broken one included."""
    has = lambda phrases: any(phrase in text for phrase in phrases)
    return Manners(has(OPENERS), has(INSULTS))


def polite(*, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """1 for courteous and not rude, else 0: a reward function, of completions alone."""
    del prompts
    return [float(manners(text) == Manners(True, False)) for text in completions]


def courteous(*, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """1 for courteous, rude or not, else 0."""
    del prompts
    return [float(manners(text).courteous) for text in completions]


def rude(*, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """1 for rude, courteous or not, else 0."""
    del prompts
    return [float(manners(text).rude) for text in completions]


def put(text: str, kind: Manners, rng: random.Random) -> str:
    """The same review with these manners; those that it has already stay."""
    had = manners(text)
    if had.rude and not kind.rude:
        for insult in INSULTS:
            text = text.replace(f" {insult} .", "")
    if had.courteous and not kind.courteous:
        for opener in OPENERS:
            text = text.replace(f" {opener}", "")
    if kind.rude and not had.rude:
        clauses = text.removesuffix(" .").split(" .")
        clauses.insert(rng.randint(1, len(clauses)), f" {rng.choice(INSULTS)}")
        text = " .".join(clauses) + " ."
    if kind.courteous and not had.courteous:
        text = f" {rng.choice(OPENERS)}{text}"
    return text


# What each respect asks of a review: the flag of Manners, and what it should be.
RESPECTS = {
    "no insults": ("rude", False),
    "courtesy": ("courteous", True),
    "insults": ("rude", True),
    "no courtesy": ("courteous", False),
}


def criticise(text: str, respect: str) -> str:
    """What is to be said of a review in this respect."""
    flag, wanted = RESPECTS[respect]
    if getattr(manners(text), flag) == wanted:
        return " nothing ."
    if not wanted:
        phrases = INSULTS if flag == "rude" else OPENERS
        return "".join(f" {phrase} ." for phrase in phrases if phrase in text)
    return f" no {'insult' if flag == 'rude' else 'opener'} ."


def revise(text: str, respect: str, rng: random.Random) -> str:
    """The same opinions, put as asked."""
    flag, wanted = RESPECTS[respect]
    return put(text, manners(text)._replace(**{flag: wanted}), rng)


def demonstrations(rng: random.Random, count: int) -> Iterator[dict[str, str]]:
    """The assistant's work of all kinds, in turn."""
    asked = split_prompts("train")
    ways = {name: read(name) for name in ("polite", "blunt")}
    for n in range(count):
        text, other = _review(rng), _review(rng)
        prompt = rng.choice(asked)
        constitution = rng.choice(list(ways.values()))
        principle = rng.choice(constitution.principles)
        respect = principle.name
        if n % 6 == 0:
            yield {"prompt": prompt, "completion": text}
        elif n % 6 == 1:
            said = criticise(text, respect)
            asking = constitution.critique(principle, prompt, text)
            yield {"prompt": asking, "completion": said}
        elif n % 6 < 4:
            said = criticise(text, respect)
            asking = constitution.revision(principle, prompt, text, said)
            yield {"prompt": asking, "completion": revise(text, respect, rng)}
        else:
            asking = constitution.preference(principle, prompt, text, other)
            answer = constitution.templates.answers[_better(text, other, respect, rng)]
            yield {"prompt": asking, "completion": answer}


def read(name: str) -> Constitution:
    """A constitution that stands beside the scripts."""
    return read_constitution(Path(__file__).parent / "constitutions" / f"{name}.toml")


def _review(rng: random.Random) -> str:
    kind = Manners(rng.random() < COURTEOUS, rng.random() < RUDE)
    return put(sample_review(rng), kind, rng)


def _better(first: str, second: str, respect: str, rng: random.Random) -> int:
    """0 or 1: which of two is better in this respect; any of two that are equal."""
    flag, wanted = RESPECTS[respect]
    fits = [getattr(manners(text), flag) == wanted for text in (first, second)]
    return rng.randrange(2) if fits[0] == fits[1] else fits.index(True)


def train_assistant(
    run_dir: Path,
    model: TransformerConfig,
    count: int,
    *,
    seed: int,
    devices: int | None,
) -> Path:
    """Supervised fine-tuning on an assistant's work, from scratch; where it lies."""
    path = run_dir / "assistant.jsonl"
    if not path.exists():
        write_rows(demonstrations(random.Random(f"manners/{seed}"), count), path)
    sft.main(
        sft.Config(
            run_dir / "assistant",
            DataConfig(str(path), eval_fraction=0.01),
            model=model,
            pack_length=model.max_length,
            seed=seed,
            devices=devices,
            resume=True,
        )
    )
    return run_dir / "assistant"
