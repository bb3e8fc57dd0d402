"""What scripts that start others keep, so that nothing finished is made again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from experiments.stops import heed_stop
from rlhf_jax.rundir import load_json, save_json


def keep_compiled(path: Path) -> None:
    """What one algorithm or seed compiles is read by the others, and by later runs."""
    jax.config.update("jax_compilation_cache_dir", str(path.absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def keep(path: Path, find: Callable[..., dict[str, Any]], *args: Any) -> None:
    """Writes a result where there is none without an error."""
    if not path.exists() or "error" in load_json(path):
        heed_stop(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_json(path, find(*args))
