"""An iteration of an experiment on a slice: what is asked, what was counted."""

import dataclasses
import time
from collections.abc import Iterable
from typing import Literal, NamedTuple

from experiments.runs import LoraOptions
from rlhf_jax.errors import UserError
from rlhf_jax.models import DType
from rlhf_jax.optim import OptimConfig
from rlhf_jax.sharding import make_mesh
from tpu.chips import Slice, compile_devices, find_slice
from tpu.counts import Count, Refused, bytes_a_chip, count_phase
from tpu.decoders import find_decoder
from tpu.phases import Algorithm, Work, make_iteration


@dataclasses.dataclass(frozen=True)
class Config:
    """An iteration of an algorithm, a model and a slice."""

    slice: str = "v5e-16"
    """Chips, as the cloud names them: v5e-1, v5p-16 (8 chips), v6e-256, …"""
    model: str = "Llama-3.1-8B"
    """A decoder of tpu/decoders.py; a folder with a config.json, or a hub id."""
    algorithm: Algorithm = "grpo"
    """Whose steps."""
    rows: int = 128
    """Demonstrations, pairs or episodes of an iteration, all chips together."""
    prompt_length: int = 512
    """Tokens of a prompt."""
    new_tokens: int = 512
    """Tokens of a response."""
    completions: int = 8
    """Responses to a prompt, of grpo."""
    reward: Literal["model", "function"] | None = None
    """Of ppo and grpo: a reward model as large as the policy, or a function; none is a
    model for ppo and a function for grpo."""
    lora: LoraOptions = LoraOptions()
    """Adapters, trained instead of the whole network."""
    fsdp: int | None = None
    """Parts of every weight; none takes all chips that tensor leaves."""
    tensor: int = 1
    """Parts of heads, of the MLP's width and of the vocabulary."""
    micro_batches: int = 1
    """Parts that an update's rows are computed in, one after the other."""
    dtype: DType = "bfloat16"
    """Of activations."""
    param_dtype: DType = "float32"
    """Of parameters; adapters are float32."""
    moments: Literal["float32", "bfloat16", "factored"] = "float32"
    """What Adam keeps."""
    remat: bool = True
    """Recompute each layer in the backward pass."""
    price: float | None = None
    """Of a chip and hour, for the cost of an iteration."""
    search: bool = False
    """If it does not fit, tries changes until one does; if it does, faster meshes."""

    def __post_init__(self):
        group = self.completions if self.algorithm == "grpo" else 1
        for name in ("rows", "prompt_length", "new_tokens", "micro_batches", "tensor"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"{name} = {value}: expected 1 or more")
        for name, parts in (
            ("completions", group),
            ("micro_batches", self.micro_batches),
        ):
            if self.rows % parts:
                raise UserError(
                    f"rows = {self.rows}: expected a multiple of {name} = {parts}"
                )

    @property
    def tokens(self) -> int:
        """Of a row; of a pair both sides'."""
        sides = 2 if self.algorithm in ("reward", "dpo") else 1
        return sides * (self.prompt_length + self.new_tokens)


class Plan(NamedTuple):
    """What was counted of a config."""

    config: Config
    on: Slice
    fsdp: int  # parts of every weight, beside those of tensor
    phases: dict[str, Count | Refused]
    resident: float  # bytes a chip, of what stays between phases

    @property
    def counts(self) -> list[Count]:
        """Of the phases that were compiled."""
        return [found for found in self.phases.values() if isinstance(found, Count)]

    @property
    def peak(self) -> float:
        """Bytes a chip at its fullest, or as many as the compiler asked for."""
        return max(
            found.peak if isinstance(found, Count) else found.needed
            for found in self.phases.values()
        )

    @property
    def fits(self) -> bool:
        """Whether the compiler took each phase, and what else is there has room."""
        whole = len(self.counts) == len(self.phases)
        return whole and self.peak <= self.on.chip.room

    @property
    def seconds(self) -> float:
        """Of an iteration, at least."""
        return sum(count.seconds(self.on.chip) for count in self.counts)


def make_work(config: Config) -> Work:
    """The iteration of a config."""
    model = dataclasses.replace(
        find_decoder(config.model),
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        max_length=config.prompt_length + config.new_tokens,
        remat=config.remat,
    )
    reward = config.reward or ("function" if config.algorithm == "grpo" else "model")
    return Work(
        config.algorithm,
        model,
        config.rows,
        config.prompt_length,
        config.new_tokens,
        completions=config.completions if config.algorithm == "grpo" else 1,
        adapters=config.lora.config(),
        optim=OptimConfig(schedule="constant", moments=config.moments),
        micro_batches=config.micro_batches,
        judged=reward == "model",
    )


def make_plan(config: Config, only: Iterable[str] | None = None) -> Plan:
    """Compiles every phase, or those named, and counts.

    Raises:
      UserError: there is no such slice or model, or the mesh does not divide the chips.
    """
    on, iteration = find_slice(config.slice), make_iteration(make_work(config))
    fsdp = config.fsdp or max(1, on.chips // config.tensor)
    mesh = make_mesh(compile_devices(on), fsdp=fsdp, tensor=config.tensor)
    found: dict[str, Count | Refused] = {}
    for phase in iteration.phases:
        if only is None or phase.name in only:
            began = time.monotonic()
            found[phase.name] = count_phase(phase, mesh, iteration.resident)
            print(f"{phase.name}: compiled in {time.monotonic() - began:.0f} s")
    return Plan(config, on, fsdp, found, bytes_a_chip(iteration.resident, mesh))
