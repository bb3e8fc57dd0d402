"""Talk to a policy: each answer with its score, and its KL from a reference.

  python -m experiments.chat --policy runs/ppo --reference runs/sft --reward runs/reward
  echo "the film was" | python -m experiments.chat --policy runs/sft

Each line that is not blank is a prompt. Where the policy's tokenizer has a chat
template, lines and answers are one conversation; else every line stands by itself, and
the answer goes on with it. /reset begins a new conversation, /seed N draws as a run
with that seed does from its start, /quit ends.

On a terminal the shade of a token is its share of the KL, log π − log π_ref: orange
where the policy says it more often than the reference, blue where less.
"""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.text import Text

from experiments import cli
from experiments.networks import fit_to_policy, load_reward
from experiments.talking import Answer, make_answer, prompt_ids
from rlhf_jax.errors import UserError
from rlhf_jax.rewards import ScoreKind
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.stages import FLOAT32, PretrainedConfig, Stage, load_policy
from rlhf_jax.terminal import printable

DARKEST = 2.0  # nats of the darkest shade
MORE, LESS = (240, 160, 100), (120, 180, 225)


@dataclasses.dataclass(frozen=True)
class Config:
    """Talking to a policy."""

    policy: Path = Path("runs/ppo")
    """Who answers: run directory, checkpoint of transformers or hub id."""
    reference: Path | None = None
    """Another policy with the same tokens, for the KL; none shows no KL."""
    reward: str | None = None
    """A reward model: run directory or checkpoint; or a function, module:function, of
    prompts and completions; none shows no score."""
    reward_kind: ScoreKind = "score"
    """What of a reward model is the score; logit or probability for classifiers."""
    reward_label: str | None = None
    """Which label of a classifier is the good one: its name or index."""
    stop_text: str | None = None
    """Tokens of this text end an answer, too, besides the end token."""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=24)
    """How answers are drawn."""
    pretrained: PretrainedConfig = FLOAT32
    """Checkpoints of transformers."""
    seed: int = 0
    """Of the answers."""

    def __post_init__(self):
        if self.sampling.completions != 1:
            raise UserError(
                f"sampling.completions = {self.sampling.completions}: expected 1, an "
                "answer to each line"
            )


@dataclasses.dataclass(frozen=True)
class Talk:
    """How far it has come."""

    messages: tuple[dict[str, str], ...]
    seed: int
    turn: int  # answers with this seed


def main(config: Config) -> None:
    """Answers until there are no more lines."""
    policy = load_policy(config.policy, config.pretrained)
    reference = load_reference(config, policy)
    reward = None
    if config.reward is not None:
        judged_by = config.reward_kind, policy, config.pretrained, config.reward_label
        reward = load_reward(config.reward, *judged_by)
    sampling = fit_to_policy(config, policy, 1, config.stop_text).sampling
    answer = make_answer(policy, reference, reward, sampling, kind=config.reward_kind)
    longest = policy.model.max_length - sampling.max_new_tokens

    def say(line: str, talk: Talk) -> Talk:
        ids = prompt_ids(talk.messages, line, policy.tokenizer, longest=longest)
        key = jax.random.fold_in(jax.random.key(talk.seed), talk.turn)
        said = answer(ids, key)
        show(said)
        talk = dataclasses.replace(talk, turn=talk.turn + 1)
        if not said.text:  # which no template takes
            return talk
        pair = ("user", line), ("assistant", said.text)
        more = tuple({"role": role, "content": text} for role, text in pair)
        return dataclasses.replace(talk, messages=talk.messages + more)

    talk = Talk((), config.seed, 0)
    if sys.stdin.isatty():
        print(f"{config.policy}: a prompt a line; /reset, /seed N, /quit")
    for line in read_lines():
        if line.strip() == "/quit":
            return
        try:
            talk = (command if line.startswith("/") else say)(line, talk)
        except UserError as error:
            if not sys.stdin.isatty():  # nobody is there to ask otherwise
                raise
            print(f"error: {error}")


def load_reference(config: Config, policy: Stage) -> Stage | None:
    """The policy that --reference names.

    Raises:
      UserError: it reads other tokens.
    """
    if config.reference is None:
        return None
    try:
        reference = load_policy(config.reference, config.pretrained)
    except UserError as error:
        message = str(error).removeprefix("--policy")
        raise UserError(f"--reference{message}") from error
    if reference.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise UserError(
            f"--reference {config.reference}: its tokenizer is not the policy's; name "
            "the policy that training began with"
        )
    return reference


def read_lines() -> Iterator[str]:
    """Lines that are not blank; with a prompt sign where somebody types them."""
    if sys.stdin.isatty():
        lines: Any = iter(lambda: input("› "), None)
    else:
        lines = (line.removesuffix("\n") for line in sys.stdin)
    try:
        yield from (line for line in lines if line.strip())
    except (EOFError, KeyboardInterrupt):
        print()


def command(line: str, talk: Talk) -> Talk:
    """What a line with a slash makes of the conversation.

    Raises:
      UserError: there is no such command.
    """
    name, *rest = line.split()
    if name == "/reset" and not rest:
        return dataclasses.replace(talk, messages=())
    if name == "/seed" and len(rest) == 1 and rest[0].isdecimal():
        return dataclasses.replace(talk, seed=int(rest[0]), turn=0)
    raise UserError(f"{line}: no such command; expected /reset, /seed N or /quit")


def show(said: Answer) -> None:
    """Prints an answer, on a terminal shaded, and its numbers."""
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    text = Text()
    for token, kl in zip(said.tokens, said.kl or [0.0] * len(said.ids), strict=True):
        text.append(printable(token), style=shade(kl))
    console.print(text)
    console.print(Text(f"  {said.facts()}", style="dim"))


def shade(kl: float) -> str:
    """The style of a token: the more nats, the darker.

    >>> shade(0.1), shade(2.0), shade(-9.0)
    ('', 'black on #f0a064', 'black on #78b4e1')
    """
    share = min(abs(kl) / DARKEST, 1.0)
    if not share >= 0.1:
        return ""
    whole = MORE if kl > 0 else LESS
    mixed = [round(255 - share * (255 - part)) for part in whole]
    return "black on #" + "".join(f"{part:02x}" for part in mixed)


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
