"""Every study's declaration: what its parts refer to exists, and its rules are complete."""

import importlib
from pathlib import Path

import pytest

from deepjax.data import dataset_info
from deepjax.study.arms.rates import packaged_rates
from deepjax.study.baselines import baseline
from deepjax.study.claim import FAMILY, Claim, Control, ExactClaim
from deepjax.study.study import Study, pilot_arms, trained_arms
from experiments.run_studies import BEYOND, STUDIES

NAMES = (*STUDIES, *BEYOND)
MAX_LINES = 300


def study(name: str) -> Study:
    return importlib.import_module(f"experiments.{name}").STUDY


def measured_claims(declared: Study) -> list[Claim]:
    return [claim for claim in declared.claims if isinstance(claim, Claim)]


@pytest.mark.parametrize("name", NAMES)
def test_a_script_is_short_and_declares_the_study_of_its_name(name):
    declared = study(name)
    assert declared.name == name
    assert declared.beyond == (name in BEYOND)
    lines = Path("experiments", f"{name}.py").read_text().splitlines()
    assert len(lines) <= MAX_LINES
    assert not any(line.startswith(("def judge", "def draw(")) for line in lines)


@pytest.mark.parametrize("name", NAMES)
def test_claims_refer_to_arms_and_figures_to_claims(name):
    declared = study(name)
    texts = [claim.text for claim in declared.claims]
    assert len(set(texts)) == len(texts)
    for claim in measured_claims(declared):
        arms = {arm for quantity in claim.quantities for arm in quantity.arms}
        assert arms <= set(declared.arms), claim.text
    for arm in declared.arms.values():
        assert not arm.rate_of or arm.rate_of in declared.arms
    for figure in declared.figures:
        assert sum(text.startswith(figure.claim) for text in texts) == 1 or not figure.claim, (
            figure.claim
        )


@pytest.mark.parametrize("name", NAMES)
def test_every_study_has_a_quick_preset_without_verdicts_and_a_judged_one(name):
    presets = study(name).presets
    assert not presets["quick"].judged
    assert presets["small"].judged
    trains = bool(study(name).arms)
    exact = all(isinstance(claim, ExactClaim) for claim in study(name).claims)
    assert exact or presets["small"].seeds >= 6
    assert not trains or study(name).beyond or "gpu" in presets


@pytest.mark.parametrize("name", NAMES)
def test_presets_make_valid_configurations_whose_data_have_a_baseline(name):
    declared = study(name)
    for preset_name, preset in declared.presets.items():
        rates = packaged_rates(preset.pilots or name, preset_name)
        if declared.arms and (preset.rate or rates):
            for arm in trained_arms(declared, preset, rates).values():
                assert arm.total_steps > 0
                assert baseline(arm.config.dataset).linear_test > 0
        assert pilot_arms(declared, preset) or preset.rate or preset.pilots or not declared.arms
        assert dataset_info(preset.dataset).test_size > 0


@pytest.mark.parametrize("name", NAMES)
def test_every_study_with_measured_claims_has_a_planted_defect(name):
    declared = study(name)
    if any(not isinstance(claim, Control) for claim in measured_claims(declared)):
        assert any(isinstance(c, Control) and c.defect for c in declared.claims)


@pytest.mark.parametrize("name", NAMES)
def test_every_claim_on_errors_states_its_smallest_effect_of_interest(name):
    for claim in measured_claims(study(name)):
        on_errors = any(quantity.arms for quantity in claim.quantities)
        assert isinstance(claim, Control) or not on_errors or claim.interest > 0, claim.text


def test_the_family_of_headline_claims_has_the_size_that_is_corrected_for():
    claims = [claim for name in STUDIES for claim in measured_claims(study(name))]
    assert sum(claim.headline for claim in claims) == FAMILY
    beyond = [claim for name in BEYOND for claim in measured_claims(study(name))]
    assert not any(claim.headline for claim in beyond)


def test_equal_names_of_own_networks_mean_equal_networks_in_all_studies():
    """Finished runs are reused by their configuration, which has only the name."""
    made: dict[str, object] = {}
    for name in NAMES:
        for arm in study(name).arms.values():
            if arm.make is not None:
                described = _described(arm.make)
                assert made.setdefault(arm.model, described) == described, arm.model


def _described(make: object) -> object:
    parts = (getattr(make, "func", make), getattr(make, "args", ()), getattr(make, "keywords", {}))
    return (getattr(parts[0], "__qualname__", repr(parts[0])), repr(parts[1]), repr(parts[2]))
