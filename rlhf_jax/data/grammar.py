"""Short film reviews from a probabilistic grammar whose sentiment is known exactly.

A review is two or three opinions, mostly of one mind, the shorter ones with a neutral
clause. ``gold_sentiment`` reads the sentiment back from any text, a policy's broken one
included: it is the truth that reward models are measured against.
"""

import itertools
import math
import random
import re

# Opinion words and their sentiment. Every grade exists on both sides, so that reviews
# are neutral on average.
ADJECTIVES = {
    "superb": 0.9, "great": 0.8, "lovely": 0.7, "good": 0.6, "fun": 0.5,
    "clever": 0.4, "fine": 0.3,
    "awful": -0.9, "bad": -0.8, "poor": -0.7, "dull": -0.6, "weak": -0.5,
    "silly": -0.4, "slow": -0.3,
}  # fmt: skip
VERBS = {
    "loved": 0.9, "enjoyed": 0.7, "liked": 0.5,
    "hated": -0.9, "disliked": -0.7, "minded": -0.5,
}  # fmt: skip
POLARITY = ADJECTIVES | VERBS
INTENSIFIERS = {"very": 1.3, "really": 1.2, "rather": 0.8, "quite": 0.7}
NEGATIONS = ("not", "never")
NEGATED = -0.6  # "not good" is bad, but less so than "bad"
ASPECTS = tuple(
    "acting plot music cast script ending sound pace story tone camera humour".split()
)

# Neutral words, short and shared by prompts and fillers: a small vocabulary holds them.
FILMS = "film movie show drama comedy sequel".split()
COMPANIONS = "my son,my wife,my dad,my mum,my boss,my aunt,a friend,my twin".split(",")
TIMES = "at home,at noon,at ten,in may,in june,in bed,in town,on sunday".split(",")
HEROES = "baker king nurse farmer spy cook judge sailor".split()
PLACES = "paris,rome,a hotel,the war,the city,space,a school,the north".split(",")


def review_prompts() -> list[str]:
    """Every neutral opening of a review that the grammar knows. No reference.

    Returns:
      768 distinct texts of seven to ten words, in a fixed order.

    >>> prompts = review_prompts()
    >>> prompts[0]
    'i saw this film at home with my son and'
    >>> prompts[-1]
    'a sequel about a sailor in the north :'
    """
    return [
        f"i saw this {film} {time} with {companion} and"
        for film, time, companion in itertools.product(FILMS, TIMES, COMPANIONS)
    ] + [
        f"a {film} about a {hero} in {place} :"
        for film, hero, place in itertools.product(FILMS, HEROES, PLACES)
    ]


def sample_review(rng: random.Random) -> str:
    """Draws a review to follow a prompt, two or three opinions long.

    No reference. Three opinions about different aspects, or two and a neutral clause.
    The share of good ones is drawn from Beta(0.4, 0.4), which is U-shaped: most reviews
    are of one mind, and so their sentiment spreads wide around 0.

    Args:
      rng: where the randomness comes from; moved on.

    Returns:
      Lower-case text that begins with a space and ends with a full stop.

    >>> sample_review(random.Random(0))
    ' the script was very great . i minded the pace . it is about a spy .'
    """
    share_good = rng.betavariate(0.4, 0.4)
    aspects = rng.sample(ASPECTS, 3 if rng.random() < 0.6 else 2)
    clauses = [_opinion(rng, aspect, rng.random() < share_good) for aspect in aspects]
    if len(clauses) == 2:
        clauses.insert(rng.randrange(3), _filler(rng))
    return "".join(f" {clause} ." for clause in clauses)


def _opinion(rng: random.Random, aspect: str, good: bool) -> str:
    """A clause about an aspect whose sentiment has the sign that is asked for."""
    if rng.random() < 0.3:
        word = rng.choice([w for w, s in VERBS.items() if (s > 0) == good])
        phrase = _intensified(rng, word, [i for i in INTENSIFIERS if i != "very"])
        return f"i {phrase} the {aspect}"
    negated = rng.random() < 0.06
    word = rng.choice(
        [w for w, s in ADJECTIVES.items() if (s > 0) == (good != negated)]
    )
    if negated:
        return f"the {aspect} was not {word}"
    return f"the {aspect} was {_intensified(rng, word, [*INTENSIFIERS])}"


def _intensified(rng: random.Random, word: str, intensifiers: list[str]) -> str:
    """The word, in half of the cases after an intensifier."""
    return f"{rng.choice(intensifiers)} {word}" if rng.random() < 0.5 else word


def _filler(rng: random.Random) -> str:
    """A clause without an opinion."""
    kind = rng.randrange(4)
    if kind == 0:
        return f"it is set in {rng.choice(PLACES)}"
    if kind == 1:
        return f"it is about a {rng.choice(HEROES)}"
    if kind == 2:
        return f"i saw it {rng.choice(TIMES)}"
    return f"{rng.choice(COMPANIONS)} was with me"


def gold_sentiment(text: str) -> float:
    """The sentiment of any text: mean over its opinions of clip(polarity · factors).

    No reference. An opinion is an opinion word with what stands right before it, at
    most one intensifier and one negation, and the aspect of its clause. The intensifier
    multiplies the word's polarity, the negation turns it to the other side and weakens
    it; the product is clipped to [−1, 1]. Saying the same again changes nothing.

    Args:
      text: anything, grammatical or not.

    Returns:
      A number in [−1, 1]; 0 for a text without an opinion word.

    >>> gold_sentiment("the plot was good .")
    0.6
    >>> gold_sentiment("the plot was good . the plot was good . the cast was bad .")
    -0.1
    """
    opinions = {
        opinion
        for clause in re.split(r"[^a-z ]", text.lower())
        for opinion in _opinions(clause.split())
    }
    if not opinions:
        return 0.0
    strengths = [max(-1.0, min(1.0, strength)) for _, _, strength in opinions]
    return round(math.fsum(strengths) / len(strengths), 6)


def _opinions(words: list[str]) -> list[tuple[str, str, float]]:
    """(aspect, word, polarity · factor) of every opinion word of a clause."""
    aspect = next((word for word in words if word in ASPECTS), "")
    opinions = []
    for index, word in enumerate(words):
        if word not in POLARITY:
            continue
        strength, before = POLARITY[word], words[:index]
        if before and before[-1] in INTENSIFIERS:
            strength *= INTENSIFIERS[before.pop()]
        if before and before[-1] in NEGATIONS:
            strength *= NEGATED
        opinions.append((aspect, word, strength))
    return opinions
