"""Networks that begin as others: reward model, policy, critic, reference."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar

import jax

from experiments.runs import split_params
from rlhf_jax.data import Prompt
from rlhf_jax.data.records import TokenIds
from rlhf_jax.errors import UserError
from rlhf_jax.models import (
    ActorCritic,
    CacheDType,
    ScoreModel,
    actor_critic_apply,
    decode_layout,
    init_head,
    init_params,
    lora,
    policy_apply,
    score_params_from_policy,
    separate_critic_apply,
)
from rlhf_jax.rewards import (
    RewardFunction,
    ScoreKind,
    load_reward_function,
    with_columns,
)
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.stages import PretrainedConfig, Stage, load_stage, pad_id
from rlhf_jax.steps import PolicyConfig
from rlhf_jax.types import ApplyFn, Array, Params


class Samples(Protocol):
    """A frozen dataclass that says how responses are drawn."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def sampling(self) -> SamplingConfig: ...


Algorithm = TypeVar("Algorithm", bound=Samples)


class Networks(NamedTuple):
    """Policy and critic, if there is one, under training, and the reference."""

    apply_fn: ApplyFn
    ref_apply_fn: ApplyFn
    sample_fn: ApplyFn  # the policy alone, with the cache that sampling is to have
    layout: Callable[[Params], Params]  # of ``params``: those of ``sample_fn``
    params: Params  # of policy and critic, as far as they are trained
    frozen: Params | None  # the rest of them
    params_path: str  # of the policy within a checkpoint of the state
    judge: Params = None  # of the reward model; None for a function


def load_reward(
    reward: str,
    kind: ScoreKind,
    policy: Stage | None,
    pretrained: PretrainedConfig,
    label: str | None = None,
    option: str = "--reward",
) -> Stage | RewardFunction:
    """A reward model that reads the policy's tokens, or a function of texts.

    Adapters that were trained on this policy share its arrays; None reads texts alone.
    ``label`` says which output of a classifier is the reward; our own have bad and
    good.
    """
    if ":" in reward:
        return load_reward_function(reward)
    judge = load_stage(
        Path(reward), "reward", option=option, pretrained=pretrained, base=policy
    )
    read = judge if policy is None else policy
    if judge.tokenizer.get_vocab() != read.tokenizer.get_vocab():
        raise UserError(
            f"{option} {reward}: its tokenizer is not the policy's; train the reward "
            "model with --policy, so that both read the same tokens"
        )
    if (judge.num_outputs == 1) != (kind == "score"):
        raise UserError(
            f"--reward-kind {kind}: the reward model {reward} has {judge.num_outputs} "
            f"outputs, expected {'1' if kind == 'score' else '2 or more'}; a scalar "
            "model's reward is its score, a classifier's its logit or probability"
        )
    return judge if kind == "score" else choose_label(judge, label)


def choose_label(judge: Stage, label: str | None) -> Stage:
    """The classifier with the output that is the reward, by its label's name or index.

    Without a choice it is good, where there is no other than bad.
    """
    labels = judge.labels
    if label is None and labels == ("bad", "good"):
        index = 1
    elif label in labels:
        index = labels.index(label)
    elif label is not None and label.isdecimal() and int(label) < len(labels):
        index = int(label)
    else:
        names = ", ".join(f"{i} ({name})" for i, name in enumerate(labels))
        raise UserError(
            f"--reward-label {label}: which label of {judge.source} is the reward? "
            f"expected one of {names}, by name or index"
        )
    return dataclasses.replace(judge, label=index)


def told_columns(reward: Any, prompts: list[Prompt[TokenIds]], tokenizer: Any) -> Any:
    """A function with the other columns of the prompts; what is none stays as it is."""
    if not callable(reward):
        return reward
    ids = [list(row.prompt) for row in prompts]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)  # as `decode` does
    rows = zip(texts, prompts, strict=True)
    return with_columns(reward, [Prompt(x, r.origin, r.columns) for x, r in rows])


def choose_critic(
    asked: Literal["reward", "head"] | None,
    algorithm: PolicyConfig,
    reward: Stage | RewardFunction,
) -> Literal["reward", "head"] | None:
    """Where the critic is, if the algorithm has one: what is asked for, or from the
    reward model, or a head where the reward is a function.
    """
    if algorithm.advantage == "gae":
        return asked or ("reward" if isinstance(reward, Stage) else "head")
    if asked is not None:
        raise UserError(
            f"critic = {asked}: advantages by {algorithm.advantage} have no critic; "
            "expected none"
        )
    return None


def make_networks(
    policy: Stage,
    reward: Stage | RewardFunction,
    critic: Literal["reward", "head"] | None,
    adapters: lora.LoraConfig | None,
    cache_dtype: CacheDType | None,
    *,
    key: Array,
) -> Networks:
    """The policy with the critic that is asked for, if any; adapters alone are trained,
    where there are some.
    """
    ref_apply_fn = policy_apply(policy.model)
    sample_fn = policy_apply(dataclasses.replace(policy.model, cache_dtype=cache_dtype))
    trained, frozen = split_params(policy.params, adapters, key=key)
    if critic != "reward":
        head = {}
        if critic == "head":
            network = ActorCritic(policy.model)
            head = {"value_head": init_head(network, "value_head", key=key)}
        return Networks(
            actor_critic_apply(policy.model) if head else ref_apply_fn,
            ref_apply_fn,
            sample_fn,
            layout=decode_layout,
            params=trained | head,
            frozen=frozen,
            params_path="params",
            judge=reward.whole() if isinstance(reward, Stage) else None,
        )
    if not isinstance(reward, Stage):
        raise UserError(
            "--critic reward: the reward is a function, there is no network to start a "
            "critic from; use --critic head"
        )
    judge, judge_frozen = critic_params(reward, adapters, key=key)
    return Networks(
        separate_critic_apply(policy.model, reward.model),
        ref_apply_fn,
        sample_fn,
        layout=lambda params: decode_layout(params["policy"]),
        params={"policy": trained, "critic": judge},
        frozen=None if frozen is None else {"policy": frozen, "critic": judge_frozen},
        params_path="params/policy",
        judge=reward.whole(),
    )


def critic_params(
    judge: Stage, adapters: lora.LoraConfig | None, *, key: Array
) -> tuple[Params, Params | None]:
    """(trained, frozen) of a critic that starts as the reward model.

    A classifier's trunk gets a new, scalar head. A reward model that is adapters itself
    goes on with those; without adapters asked for, they are merged.
    """
    if adapters is not None and judge.adapters is not None and judge.lora is not None:
        trained, frozen = judge.adapters, lora.freeze(judge.params, judge.lora)
    else:
        if adapters is not None and adapters.targets is not None:  # there is no lm_head
            targets = tuple(t for t in adapters.targets if t != "lm_head")
            adapters = dataclasses.replace(adapters, targets=targets)
        trained, frozen = split_params(judge.merged().params, adapters, key=key)
    if judge.num_outputs > 1:
        head = init_head(ScoreModel(judge.model), "score_head", key=key)
        trained = trained | {"score_head": head}
    return trained, frozen


def reward_params(network: ScoreModel, policy: Stage | None, *, key: Array) -> Params:
    """New parameters of a reward model, on the policy's trunk where there is one."""
    if policy is None:
        return init_params(network, key=key)
    shapes = jax.eval_shape(functools.partial(init_params, network), key=key)
    head = {"score_head": init_head(network, "score_head", key=key)}
    return score_params_from_policy(policy.params, shapes | head)


def fit_to_policy(
    algorithm: Algorithm, policy: Stage, prompt_length: int, stop_text: str | None
) -> Algorithm:
    """The algorithm with the policy's stop tokens and padding.

    Raises:
      UserError: prompt and response do not fit the policy's context.
    """
    context, budget = policy.model.max_length, algorithm.sampling.max_new_tokens
    sampling = dataclasses.replace(
        algorithm.sampling,
        stop_ids=algorithm.sampling.stop_ids or stop_ids(policy, stop_text),
        pad_id=pad_id(policy.tokenizer),
    )
    if prompt_length + budget > context:
        raise UserError(
            f"prompt_length = {prompt_length} and sampling.max_new_tokens = "
            f"{budget} exceed the policy's context of {context} tokens; shorten one"
        )
    return dataclasses.replace(algorithm, sampling=sampling)


def stop_ids(policy: Stage, stop_text: str | None) -> tuple[int, ...]:
    """The end tokens, and those that spell ``stop_text``, white space aside."""
    tokenizer: Any = policy.tokenizer
    if stop_text is None:
        return policy.stop_ids
    spelled = [
        i for i in range(len(tokenizer)) if tokenizer.decode([i]).strip() == stop_text
    ]
    if not spelled:
        raise UserError(
            f"stop_text = {stop_text!r}: no token of the policy's tokenizer spells it; "
            "choose another text, or none for the end token alone"
        )
    return tuple(sorted({*policy.stop_ids, *spelled}))
