"""Checkpoints: a pytree of arrays and a JSON-able host state, exactly as they were.

``save`` and ``start_save`` write them, ``restore``, ``restore_latest_valid`` and
``restore_params`` read them; ``python -m rlhf_jax.checkpoint`` looks at them.

Orbax writes the arrays under a temporary name. Every file is then hashed into
``manifest.json`` beside them, and the folder gets the number of its step: a folder of
that name is complete, and what is read from it is what was written, or an error that
names the file. Leaves are stored under their path in the pytree
(``params/layers_0/kernel``), so that part of a state, such as the params of an earlier
stage, can be read without the code that made the rest.
"""

from rlhf_jax.checkpoint.folder import latest_step, put_all_aside, saved_steps
from rlhf_jax.checkpoint.loading import (
    Restored,
    latest_sound,
    restore,
    restore_latest_valid,
    restore_params,
    restore_verified,
)
from rlhf_jax.checkpoint.manifest import (
    CheckpointError,
    DamagedError,
    Manifest,
    NoneSoundError,
    read_manifest,
    verify,
)
from rlhf_jax.checkpoint.saving import Saving, save, start_save

__all__ = [
    "CheckpointError",
    "DamagedError",
    "Manifest",
    "NoneSoundError",
    "Restored",
    "Saving",
    "latest_sound",
    "latest_step",
    "put_all_aside",
    "read_manifest",
    "restore",
    "restore_latest_valid",
    "restore_params",
    "restore_verified",
    "save",
    "saved_steps",
    "start_save",
    "verify",
]
