"""Made-up results of arms, for rules to be held against."""

from deepjax.study.arms import ArmResult


def arm(train: float, test: float, spread: float = 0.001) -> ArmResult:
    """An arm of three seeds with final errors around the given ones."""
    rows = [
        [{"kind": "final", "step": 1, "train_error": train + offset, "test_error": test + offset}]
        for offset in (-spread, 0.0, spread)
    ]
    return ArmResult({0.1: train}, 0.1, rows)
