"""What every training script does around its loop: options and checkpoints."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from jax.sharding import Mesh

from rlhf_jax.errors import UserError
from rlhf_jax.guards import GuardConfig
from rlhf_jax.models import lora
from rlhf_jax.parallel import (
    Where,
    batch_parts,
    beginning,
    data_parallel,
    local_devices,
)
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.sharding import make_mesh
from rlhf_jax.stages import FLOAT32, PretrainedConfig
from rlhf_jax.tracking import TrackingConfig
from rlhf_jax.types import Array, Params


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
class ResumeConfig:
    """Where a run lies, and how it goes on there."""

    run_dir: Path
    """Where checkpoints, metrics and the report go."""
    _: dataclasses.KW_ONLY
    save_every: int = 200
    """Updates between checkpoints."""
    resume: bool = False
    """Go on from the latest checkpoint of the run directory."""
    accept: tuple[str, ...] = ()
    """Differences from the run to go on with that are meant, by name, such as
    optim.learning_rate, data or tokenizer."""
    restart: bool = False
    """Begin anew where no checkpoint is sound; what there is of them is renamed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(ResumeConfig):
    """What every training script is asked."""

    lora: LoraOptions = LoraOptions()
    """Adapters."""
    pretrained: PretrainedConfig = FLOAT32
    """Checkpoints of transformers."""
    devices: int | None = None
    """Number of devices; none uses all."""
    seed: int = 0
    """Of initialisation, order and sampling."""
    tracking: TrackingConfig = TrackingConfig()
    """TensorBoard and W&B."""
    guard: GuardConfig = GuardConfig()
    """What stops a run whose losses or gradients are not finite."""
    stall: float | None = None
    """Seconds without an update, compilation and evaluation counted, after which the
    run ends with exit code 75; none waits for ever."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Parts of a model that does not fit on a device; with 1 and 1 each has all."""

    fsdp: int = 1
    """Devices that share every weight, and rows."""
    tensor: int = 1
    """Devices that share the heads, the MLP's width and the vocabulary, not rows."""

    def __post_init__(self):
        for name, count in vars(self).items():
            if count < 1:
                raise UserError(f"mesh.{name} = {count}: expected 1 device or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartsConfig(RunConfig):
    """What a training script is asked whose model may lie in parts."""

    mesh: MeshConfig = MeshConfig()
    """Parts of the model; devices that it leaves over share the rows."""


Config = TypeVar("Config", bound=PartsConfig)
Found = TypeVar("Found")


def on_devices(main: Callable[[Config, Where], Found]) -> Callable[[Config], Found]:
    """``main(config, devices)`` as a function of the config, which says what devices.

    Where they are a mesh, all that ``main`` makes and loads lies on the host until it
    is placed in parts (`parallel.beginning`).
    """

    @functools.wraps(main)
    def run(config: Config) -> Found:
        devices = take_devices(config)
        with beginning(devices):
            return main(config, devices)

    return run


def take_devices(config: PartsConfig) -> Where:
    """The devices that a run asks for, or the mesh of them.

    Raises:
      UserError: there are not as many, or the mesh does not divide them.
    """
    devices = local_devices(config.devices)
    if config.mesh == MeshConfig():
        return devices
    return make_mesh(devices, fsdp=config.mesh.fsdp, tensor=config.mesh.tensor)


def for_stages(config: RunConfig) -> dict[str, Any]:
    """What a script asks of each of its stages; a finished one is not made again."""
    names = [field.name for field in dataclasses.fields(RunConfig)]
    own = {name: getattr(config, name) for name in names if name != "run_dir"}
    return own | {"resume": True}


def split_params(
    params: Params, config: lora.LoraConfig | None, *, key: Array
) -> tuple[Params, Params | None]:
    """(trained, frozen): all and None; or new adapters with the heads, and the rest."""
    if config is None:
        return params, None
    whole = ("score_head", "value_head", "users")
    heads = {k: v for k, v in params.items() if k in whole}
    base = {name: tree for name, tree in params.items() if name not in heads}
    return lora.init(base, config, key=key) | heads, lora.freeze(base, config)


def on_batches(
    step: Callable,
    devices: Where,
    *,
    others: int = 1,
    donate_state: bool = False,
    **options: Any,
) -> Callable:
    """A step with its options, each device with its part of the batch.

    Args:
      step: ``(state or parameters, batch, *other parameters)`` and options.
      devices: where it runs.
      others: how many other trees of parameters there are, such as the frozen ones.
      donate_state: the state's buffers are reused for the result, and gone.
      **options: of the step.
    """
    return data_parallel(
        functools.partial(step, **options),
        devices,
        in_axes=(None, 0, *others * [None]),
        out_axes=None,
        donate_state=donate_state,
    )


def check_micro_batches(parts: int, *, rows: int, devices: Where) -> None:
    """Refuses what does not cut an update's rows on each device into equal parts.

    Raises:
      UserError: less than one part, or rows that are left over.
    """
    n = batch_parts(devices)
    if parts < 1 or rows % (parts * n):
        what = "parts of the mesh" if isinstance(devices, Mesh) else "devices"
        raise UserError(
            f"micro_batches = {parts}: expected a divisor of the {rows / n:g} rows of "
            f"an update on each of {n} {what}"
        )


def check_batches(
    sampling: SamplingConfig, episodes: int, batch_size: int, eval_samples: int
) -> None:
    """Refuses what does not fill a batch, or does not hold whole groups of completions.

    Raises:
      UserError: fewer episodes than a batch, or completions that are left over.
    """
    if episodes < batch_size:
        raise UserError(
            f"episodes = {episodes}: expected at least one batch of "
            f"batch_size = {batch_size}"
        )
    for name, count in (("batch_size", batch_size), ("eval_samples", eval_samples)):
        if count % sampling.completions:
            raise UserError(
                f"{name} = {count}: expected a multiple of "
                f"sampling.completions = {sampling.completions}"
            )


def needs_policy(config: RunConfig, policy: Path | None) -> None:
    """Adapters need something to adapt."""
    if config.lora.rank is not None and policy is None:
        raise UserError("--lora.rank needs a network to adapt: give --policy")
