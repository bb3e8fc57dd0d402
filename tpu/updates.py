"""Phases as compiled programs; the updates of SFT, DPO and PPO by themselves."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlhf_jax.models import TransformerConfig
from rlhf_jax.sharding import ROWS, make_mesh, on_mesh, state_shardings
from tpu.phases import Algorithm, Phase, Work, make_iteration


def compile_phase(phase: Phase, mesh: Mesh) -> Any:
    """Compiled for a mesh: what is held in parts (`state_shardings`), rows cut."""
    step = on_mesh(phase.step, mesh)
    held, rows, where = place(phase, mesh)
    new = (where[0], None) if phase.donated else None
    donated = (0,) if phase.donated else ()
    step = jax.jit(step, out_shardings=new, donate_argnums=donated)
    return step.lower(held[0], rows, *held[1:]).compile()


def place(phase: Phase, mesh: Mesh) -> tuple[Any, Any, Any]:
    """(held, rows, shardings of held), with the place of each leaf."""
    put = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    cut = NamedSharding(mesh, PartitionSpec(ROWS))
    where = state_shardings(phase.held, mesh)
    rows = jax.tree.map(lambda x: put(x, cut), phase.rows)
    return jax.tree.map(put, phase.held, where), rows, where


def compile_update(
    algorithm: Algorithm,
    model: TransformerConfig,
    devices: Sequence[Any],
    rows: int,
    **parts: int,
) -> Any:
    """The compiled update over devices; ``parts`` are those of `make_mesh`.

    Rows are of the context's length; of DPO both sides of a pair are counted. The
    update of PPO has all epochs, and a critic of the policy's size.
    """
    rows = rows // 2 if algorithm == "dpo" else rows
    work = Work(
        algorithm, model, rows, model.max_length // 2, -(-model.max_length // 2)
    )
    update = make_iteration(work).phases[-1]
    return compile_phase(update, make_mesh(devices, **parts))


compile_sft = functools.partial(compile_update, "sft")
