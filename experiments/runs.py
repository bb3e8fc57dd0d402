"""What every training script does around its loop: options, checkpoints, plan, rate."""

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from rlhf_jax import checkpoint
from rlhf_jax.errors import UserError
from rlhf_jax.models import DType, TransformerConfig, lora
from rlhf_jax.ops.fused_logprobs import CHUNK
from rlhf_jax.parallel import Devices
from rlhf_jax.sampling import RolloutMeter
from rlhf_jax.terminal import memory_estimate, print_plan
from rlhf_jax.tracking import TrackingConfig
from rlhf_jax.types import Array, Params

CHECKPOINTS = "checkpoints"


@dataclasses.dataclass(frozen=True)
class PretrainedConfig:
    """How checkpoints of transformers are loaded; earlier stages are as they were."""

    dtype: DType = "float32"
    """Of activations."""
    param_dtype: DType = "float32"
    """Of parameters, whatever the files have."""
    remat: bool = False
    """Recompute each layer in the backward pass: memory for time."""
    ignore_remote_code: bool = False
    """Reads weights although config.json names code; it never runs."""


FLOAT32 = PretrainedConfig()


@dataclasses.dataclass(frozen=True)
class LoraOptions:
    """Low-rank adapters, trained instead of the whole network."""

    rank: int | None = None
    """Rank of the adapters; none trains all parameters."""
    alpha: float = 32.0
    """Scale of the adapters times their rank."""
    targets: tuple[str, ...] | None = None
    """Projections that get one, such as q_proj v_proj; none adapts all of a layer's."""

    def config(self) -> lora.LoraConfig | None:
        """The adapters' config, or None."""
        if self.rank is None:
            return None
        return lora.LoraConfig(self.rank, self.alpha, self.targets)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What every training script is asked."""

    run_dir: Path
    """Where checkpoints, metrics and the report go."""
    _: dataclasses.KW_ONLY
    lora: LoraOptions = LoraOptions()
    """Adapters."""
    pretrained: PretrainedConfig = FLOAT32
    """Checkpoints of transformers."""
    save_every: int = 200
    """Updates between checkpoints."""
    devices: int | None = None
    """Number of devices; none uses all."""
    seed: int = 0
    """Of initialisation, order and sampling."""
    tracking: TrackingConfig = TrackingConfig()
    """TensorBoard and W&B."""
    resume: bool = False
    """Go on from the latest checkpoint of the run directory."""


def split_params(
    params: Params, config: lora.LoraConfig | None, *, key: Array
) -> tuple[Params, Params | None]:
    """(trained, frozen): all and None; or new adapters with the heads, and the rest."""
    if config is None:
        return params, None
    heads = {k: v for k, v in params.items() if k in ("score_head", "value_head")}
    base = {name: tree for name, tree in params.items() if name not in heads}
    return lora.init(base, config, key=key) | heads, lora.freeze(base, config)


def resume_state(run_dir: Path, state: Any, loader: Any) -> tuple[Any, int | None]:
    """(state, step) of the latest checkpoint, the loader moved to its place.

    The state as it is and None where there is no checkpoint yet.
    """
    if checkpoint.latest_step(run_dir / CHECKPOINTS) is None:
        return state, None
    state, host_state, step = checkpoint.restore(run_dir / CHECKPOINTS, state)
    loader.set_state(host_state["loader"])
    return state, step


def save_state(run_dir: Path, step: int, state: Any, loader: Any) -> None:
    """Saves a checkpoint of the state and the loader's place."""
    checkpoint.save(
        run_dir / CHECKPOINTS,
        step,
        state,
        host_state={"loader": loader.get_state()},
        keep=2,
    )


def check_micro_batches(parts: int, *, rows: int, devices: Devices) -> None:
    """Refuses what does not cut an update's rows on each device into equal parts.

    Raises:
      UserError: less than one part, or rows that are left over.
    """
    if parts < 1 or rows % (parts * len(devices)):
        raise UserError(
            f"micro_batches = {parts}: expected a divisor of the "
            f"{rows / len(devices):g} rows of an update on each of {len(devices)} "
            "devices"
        )


def count_params(*trees: Any) -> int:
    """Number of parameters of trees of arrays; an array in several is one."""
    leaves = {id(x): x.size for tree in trees for x in jax.tree.leaves(tree)}
    return sum(leaves.values())


def show_plan(
    title: str,
    model: TransformerConfig,
    *,
    trained: int,
    frozen: int,
    steps: int,
    rows: int,
    length: int,
    micro_batches: int,
    devices: Devices,
) -> None:
    """Prints what is going to run, with an estimate of the memory a device needs."""
    memory = memory_estimate(
        trained=trained,
        frozen=frozen,
        tokens=rows * length // (len(devices) * micro_batches),
        length=length,
        d_model=model.d_model,
        layers=model.n_layers,
        heads=model.n_heads,
        vocab_size=min(model.vocab_size, CHUNK),  # logits are there in slices
        itemsize=4 if model.dtype == "float32" else 2,
    )
    print_plan(
        title,
        parameters=trained,
        steps=steps,
        tokens_per_step=rows * length,
        devices=devices,
        memory=memory,
    )


def needs_policy(config: RunConfig, policy: Path | None) -> None:
    """Adapters need something to adapt."""
    if config.lora.rank is not None and policy is None:
        raise UserError("--lora.rank needs a network to adapt: give --policy")


class TokenMeter:
    """Tokens a second between readings; the first one includes compilation."""

    def __init__(self):
        self._since, self._tokens = time.perf_counter(), 0
        self.last = float("nan")

    def add(self, tokens: int) -> None:
        self._tokens += tokens

    def rate(self) -> float:
        """Tokens a second since the last reading."""
        now = time.perf_counter()
        self.last = self._tokens / (now - self._since)
        self._since, self._tokens = now, 0
        return self.last


class ShowRollout:
    """Puts the numbers of a running rollout beside the bar of its stage."""

    def __init__(self):
        self.on: Callable[..., None] | None = None  # of `terminal.progress`

    def report(self) -> Callable[..., None] | None:
        """For ``generate``; None where nobody looks, so that no host is called."""
        return RolloutMeter(self._show) if sys.stdout.isatty() else None

    def _show(self, numbers: dict[str, float]) -> None:
        if self.on is not None:
            self.on(numbers, steps=0)
