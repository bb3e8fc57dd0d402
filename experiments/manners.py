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
PACKED = 128  # tokens of a row of demonstrations


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
    constitutions = [read(name) for name in ("polite", "blunt")]
    for n in range(count):
        text, prompt = _review(rng), rng.choice(asked)
        constitution = rng.choice(constitutions)
        principle = rng.choice(constitution.principles)
        about = principle, prompt, text
        critique = criticise(text, principle.name)
        kind = n % 6
        if kind == 0:
            question, said = prompt, text
        elif kind == 1:
            question, said = constitution.critique(*about), critique
        elif kind < 4:
            question = constitution.revision(*about, critique)
            said = revise(text, principle.name, rng)
        else:
            other, place = _rival(text, principle.name, rng)
            question = constitution.preference(*about, other)
            said = constitution.templates.answers[place]
        yield {"prompt": question, "completion": said}


def read(name: str) -> Constitution:
    """A constitution that stands beside the scripts."""
    return read_constitution(Path(__file__).parent / "constitutions" / f"{name}.toml")


def _review(rng: random.Random) -> str:
    kind = Manners(rng.random() < COURTEOUS, rng.random() < RUDE)
    return put(sample_review(rng), kind, rng)


def _rival(text: str, respect: str, rng: random.Random) -> tuple[str, int]:
    """Another review, and which is better in this respect: 0 the first, 1 the other.

    Of every five, four differ in it. Of two that do not, either is said to be better:
    the judge learns ½ there, and what to look at from the others.
    """
    flag, wanted = RESPECTS[respect]
    fits = lambda review: getattr(manners(review), flag) == wanted
    differ, other = rng.random() < 0.8, _review(rng)
    while differ and fits(other) == fits(text):
        other = _review(rng)
    if fits(other) == fits(text):
        return other, rng.randrange(2)
    return other, int(fits(other))


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
            pack_length=PACKED,
            seed=seed,
            devices=devices,
            resume=True,
        )
    )
    return run_dir / "assistant"
