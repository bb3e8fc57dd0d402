"""The scripts."""

import os

# transformers says at every start that there is no torch, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
