"""How many examples a property is tested on: few in `make test`, many in `make properties`."""

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings

# The many examples are divided into this many seeds; a resumed search skips those it has done.
SEEDS = 20


def examples(few: int, many: int) -> Callable[[Any], Any]:
    """Hypothesis's settings: `few` fixed examples in the suite, `many` over all seeds of a search.

    Apply it outermost, above `@given`.
    """
    long = "DEEPJAX_PROPERTY_SEARCH" in os.environ

    def decorate(test: Any) -> Any:
        test.many = many
        return settings(
            max_examples=max(1, many // SEEDS) if long else few,
            derandomize=not long,  # in a long search --hypothesis-seed decides
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=[
                HealthCheck.too_slow,
                HealthCheck.data_too_large,
                HealthCheck.filter_too_much,
            ],
        )(test)

    return decorate
