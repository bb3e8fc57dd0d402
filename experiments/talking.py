"""What a policy says to one prompt, and what a reference and a reward think of it."""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.pieces import token_kl, token_texts
from experiments.rollouts import decode, make_scorer, response_ids
from rlhf_jax.data import (
    Prompt,
    collate_prompts,
    tokenize_chat_prompt,
    tokenize_prompts,
)
from rlhf_jax.data.records import TokenIds
from rlhf_jax.errors import UserError
from rlhf_jax.models import decode_layout, policy_apply
from rlhf_jax.parallel import local_devices, replicate, shard
from rlhf_jax.rewards import RewardFunction, ScoreKind
from rlhf_jax.sampling import SamplingConfig, generate
from rlhf_jax.stages import Stage
from rlhf_jax.steps import policy_forward
from rlhf_jax.types import Array, Params, Rollout, TokenBatch

SHORTEST = 32  # tokens of a prompt that a program is compiled for; then twice as many


class Answer(NamedTuple):
    """What a policy said, and what is thought of it."""

    text: str
    ids: list[int]
    tokens: list[str]  # joined they are the text
    kl: list[float] | None  # nats, of each token
    score: float | None
    ended: bool  # by a stop token

    def facts(self) -> str:
        """One line of numbers.

        >>> Answer("ok", [7, 2], ["ok", ""], [0.5, 0.25], 1.0, True).facts()
        'score +1.000  KL +0.75 nats (+0.375 a token)  2 tokens, ended'
        """
        count, facts = len(self.ids), []
        if self.score is not None:
            facts.append(f"score {self.score:+.3f}")
        if self.kl is not None:
            kl = sum(self.kl)
            facts.append(f"KL {kl:+.2f} nats ({kl / max(count, 1):+.3f} a token)")
        length = f"{count} token{'s' if count != 1 else ''}"
        facts.append(f"{length}, {'ended' if self.ended else 'cut off'}")
        return "  ".join(facts)


def make_answer(
    policy: Stage,
    reference: Stage | None,
    reward: Stage | RewardFunction | None,
    sampling: SamplingConfig,
    *,
    kind: ScoreKind,
) -> Callable[[TokenIds, Array], Answer]:
    """A function of a prompt's ids and a key; compiled once for a width of prompts.

    Args:
      policy: who answers.
      reference: for the KL, at the temperature of ``sampling``; None: not asked.
      reward: for the score, which is that of training; None: not asked.
      sampling: with the policy's stop tokens and padding.
      kind: what of a reward model is the score.
    """
    devices, tokenizer = local_devices(1), policy.tokenizer
    judge = reward.whole() if isinstance(reward, Stage) else None
    ref = None if reference is None else reference.params
    params, ref, judge = replicate((policy.params, ref, judge), devices)
    score = None
    if reward is not None:
        score = make_scorer(reward, judge, kind, tokenizer, devices)

    @jax.jit
    def draw(
        params: Params, ref: Params, prompts: TokenBatch, key: Array
    ) -> tuple[Rollout, Array | None]:
        apply_fn, laid_out = policy_apply(policy.model), decode_layout(params)
        rollout = generate(apply_fn, laid_out, prompts, key=key, config=sampling)
        if reference is None:
            return rollout, None
        told: Any = {"temperature": sampling.temperature, "kept": rollout.kept}
        ref_fn = policy_apply(reference.model)
        thought = policy_forward(ref_fn, ref, rollout.batch, **told)
        return rollout, jnp.where(rollout.batch.mask, thought.logprobs, 0.0)

    lengths = widths(policy.model.max_length - sampling.max_new_tokens)
    collate = functools.partial(collate_prompts, length=lengths, pad_id=sampling.pad_id)

    def answer(ids: TokenIds, key: Array) -> Answer:
        rollout, ref_logprobs = draw(params, ref, collate([Prompt(ids)]), key)
        rollout = jax.device_get(rollout)
        [text], [said] = decode(tokenizer, rollout)[1], response_ids(rollout)
        kl = None
        if ref_logprobs is not None:
            [kl] = token_kl(rollout.logprobs, ref_logprobs, rollout.batch.mask)
        return Answer(
            text,
            said,
            tokens=token_texts(tokenizer, said, text),
            kl=kl,
            score=None
            if score is None
            else float(score(shard(rollout, devices))[0, 0]),
            ended=not bool(rollout.truncated[0]),
        )

    return answer


def widths(longest: int) -> list[int]:
    """Columns of prompts: few, so that few programs are compiled.

    >>> widths(100), widths(20)
    ([32, 64, 100], [20])
    """
    found = [SHORTEST]
    while found[-1] < longest:
        found.append(2 * found[-1])
    return [*found[:-1], longest]


def prompt_ids(
    messages: Sequence[dict[str, str]], line: str, tokenizer: Any, *, longest: int
) -> TokenIds:
    """A line as token ids, after its conversation where there is a chat template.

    Raises:
      UserError: they are too many, or the template refuses them.
    """
    if tokenizer.chat_template is None:
        limit: Any = {"max_prompt_length": sys.maxsize}
        [prompt], _ = tokenize_prompts([Prompt(line)], tokenizer, **limit)
        ids, remedy = prompt.prompt, "shorten it"
    else:
        asked = [*messages, {"role": "user", "content": line}]
        ids = tokenize_chat_prompt(asked, tokenizer)
        remedy = "shorten it, or begin a new conversation with /reset"
    if len(ids) > longest:
        raise UserError(
            f"the prompt has {len(ids)} tokens, and {longest} fit beside an answer of "
            f"sampling.max_new_tokens: {remedy}"
        )
    return ids
