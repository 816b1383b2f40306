"""How hard Hypothesis tries, by `HYPOTHESIS_PROFILE`; a failure prints what replays it.

Each run of `default` draws other examples, and each of `hard` four times as many. `ci`, which
.ci/run sets, draws the same ones every time: what it says of a change is about that change.
"""

import os

from hypothesis import HealthCheck, settings

_BUSY = [HealthCheck.too_slow]
"""That two busy cores take their time to draw examples is no reason to fail."""

settings.register_profile("default", deadline=None, print_blob=True, suppress_health_check=_BUSY)
settings.register_profile("hard", settings.get_profile("default"), max_examples=400)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
