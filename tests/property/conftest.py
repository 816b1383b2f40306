"""How hard Hypothesis tries: `HYPOTHESIS_PROFILE=ci` for more; a failure prints what replays it."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile("default", max_examples=100, deadline=None, print_blob=True)
settings.register_profile(
    "ci",
    max_examples=400,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],  # two busy cores are no reason to fail
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
