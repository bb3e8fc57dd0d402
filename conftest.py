"""One place for what every test runs under."""

import os
import shutil
import tempfile
from typing import Any

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config: pytest.Config) -> None:
    """Programs that two tests, workers or processes have in common compile once."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        config.stash[CACHE] = tempfile.mkdtemp()
        os.environ["JAX_COMPILATION_CACHE_DIR"] = config.stash[CACHE]
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
        # With a limit, JAX locks the folder: nobody reads what is half written.
        os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(2**34)
    # jax has read its options when it was imported, above.
    folder = os.environ["JAX_COMPILATION_CACHE_DIR"]
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_compilation_cache_max_size", 2**34)


def pytest_unconfigure(config: pytest.Config) -> None:
    if folder := config.stash.get(CACHE, None):
        shutil.rmtree(folder, ignore_errors=True)


CACHE = pytest.StashKey[str]()


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A worker takes whole files: what their tests have in common is made once."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Drops a file's programs: a process may map only so many pieces of memory."""
    if nextitem is None or nextitem.path != item.path:
        jax.clear_caches()


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)
