"""What all tests share: examples made by Hypothesis are the same in every run.

A run that draws others (``TRIMTAB_TEST_EXPLORE=1``) is for hunting faults, not for gating a change.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True)
if not os.environ.get("TRIMTAB_TEST_EXPLORE"):
    settings.load_profile("repeatable")
