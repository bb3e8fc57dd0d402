"""Settings of this process that make XLA's CPU backend faster and smaller."""

import ctypes
import functools
import os
import sys
from typing import Any

import jax

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
SCHEDULER = "--xla_cpu_enable_concurrency_optimized_scheduler"
COMPILED = "/jax/core/compile/backend_compile_duration"  # what jax calls the event


def prepare_cpu() -> None:
    """To be called before the first computation; the scripts do. No reference.

    Nothing computes anything else than before, and other backends take no notice.

    * Freed memory is kept. XLA's CPU client takes the temporary memory of every call
      from malloc; above 32 MB glibc maps it anew each time, and the system fills every
      page with zeros first: a tenth to a quarter of the time of a training step. The
      process stays as large as it was at its largest; only after something has been
      compiled is what was freed until then given back, 0.2 to 0.5 GB of it.
    * Computations run in the thread that asks for them, for glibc keeps memory of that
      size for the main thread only. Python waits for them.
    * Operations are ordered for little memory rather than for many at a time, which
      few cores cannot use: a fifth of a training step's temporary memory. Of this flag
      an ``XLA_FLAGS`` that names it keeps its own value.

    >>> prepare_cpu()  # doctest: +SKIP
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    flags = os.environ.get("XLA_FLAGS", "")
    if SCHEDULER not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {SCHEDULER}=false".strip()
    _keep_memory()


@functools.cache  # once a process: jax tells every listener that was ever added
def _keep_memory() -> None:
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):  # of glibc alone
        return
    libc.mallopt(M_MMAP_MAX, 0)  # no maps for large blocks
    libc.mallopt(M_TRIM_THRESHOLD, -1)  # no trimming

    def trim(event: str, duration_secs: float, **_: Any) -> None:
        del duration_secs
        if event == COMPILED:
            libc.malloc_trim(0)

    jax.monitoring.register_event_duration_secs_listener(trim)
