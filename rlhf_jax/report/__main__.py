"""``python -m rlhf_jax.report RUN [RUN …]``."""

import sys

from rlhf_jax.report.command import main

raise SystemExit(main(sys.argv[1:]))
