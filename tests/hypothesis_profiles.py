"""How hard Hypothesis tries: `HYPOTHESIS_PROFILE=ci` for more; a failure prints what replays it."""

import os

from hypothesis import HealthCheck, settings

_BUSY = [HealthCheck.too_slow]
"""That two busy cores take their time to draw examples is no reason to fail."""

settings.register_profile(
    "default", max_examples=100, deadline=None, print_blob=True, suppress_health_check=_BUSY
)
settings.register_profile(
    "ci", max_examples=400, deadline=None, print_blob=True, suppress_health_check=_BUSY
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
