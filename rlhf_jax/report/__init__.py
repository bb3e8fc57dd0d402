"""What came of runs, as a picture and as a page.

The command is ``python -m rlhf_jax.report RUN [RUN …]``.
"""

from rlhf_jax.report.command import main
from rlhf_jax.report.curves import REPORT_FILE, Curves, read_curves, write_report
from rlhf_jax.report.page import PAGE_FILE, write_page
from rlhf_jax.report.panels import PANELS, Panel

__all__ = [
    "PAGE_FILE",
    "PANELS",
    "REPORT_FILE",
    "Curves",
    "Panel",
    "main",
    "read_curves",
    "write_page",
    "write_report",
]
