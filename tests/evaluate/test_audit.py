"""eegvision.evaluate.audit: verdicts from constructed numbers, one control at a time, and what follows from all."""

import dataclasses
import json

import pytest

from eegvision.evaluate.answers import Drop, Score, Selection
from eegvision.evaluate.audit import AuditResult, Control, Evidence, judge

ABOVE = Score(value=0.6, low=0.5, high=0.7, chance=0.1, p=0.0001, n=30)
AT_CHANCE = Score(value=0.11, low=0.06, high=0.16, chance=0.1, p=0.4, n=30)
GREEN = {
    check: {"grade": "green", "sentence": check} for check in ("order known", "class from time", "class and block")
}
RED = GREEN | {"class and block": {"grade": "red", "sentence": "Knowing the block tells all of the class."}}
UNKNOWN = {"order known": {"grade": "amber", "sentence": "When any segment was recorded is not known."}}


def lost(before: float, after: float, p: float, *, is_matched: bool = True) -> Drop:
    shared, apart = (
        dataclasses.replace(ABOVE, value=value, p=0.0001 if value > 0.2 else 0.4) for value in (before, after)
    )
    return Drop(
        shared=shared,
        apart=apart,
        difference=after - before,
        low=after - before - 0.1,
        high=after - before + (0.05 if p < 0.05 else 0.2),
        p=p,
        is_matched=is_matched,
    )


SOUND = Evidence(
    metric="class",
    order=GREEN,
    claim=ABOVE,
    pictures=ABOVE,
    blocks=lost(0.57, 0.56, 0.4),
    in_blocks=AT_CHANCE,
    shuffled=AT_CHANCE,
    relabelled=AT_CHANCE,
    slow={"below 1 Hz": "segments are too short", "below 5 Hz": ABOVE},
    before_onset="nothing before onset is stored",
    codes="the image encoder is frozen",
    purge=None,
    n_shared_pictures=0,
    near_duplicates="none of 30 scored pictures is trained on",
    selection=Selection(fixed=0.6, by_other_seeds=0.6, chosen=0.62, n_passes=12),
    first_losses=(3.2, 3.2),
)


def audited(**changed: object) -> tuple[str, str, dict[str, Control]]:
    verdict, reason, controls = judge(dataclasses.replace(SOUND, **changed))  # type: ignore[arg-type]
    return verdict, reason, {control.name: control for control in controls}


def test_a_sound_score_is_supported_though_some_controls_have_nothing_to_test():
    verdict, _, controls = audited()
    assert verdict == "supported"
    assert controls["pre-stimulus"].verdict == "not testable"
    assert controls["pre-stimulus"].reason == "nothing before onset is stored"
    assert controls["claim"].value == 0.6
    assert controls["claim"].n == 30


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"claim": AT_CHANCE}, "claim"),
        ({"order": RED, "slow": {}}, "order"),
        ({"order": UNKNOWN | {"published critique": {"grade": "red", "sentence": "Known."}}, "slow": {}}, "order"),
        ({"blocks": lost(0.6, 0.15, 0.001)}, "leave-block-out"),
        ({"blocks": lost(0.6, 0.3, 0.001)}, "leave-block-out"),
        ({"purge": lost(0.6, 0.3, 0.001)}, "time-purged"),
        ({"in_blocks": ABOVE}, "shuffled-in-blocks"),
        ({"shuffled": ABOVE}, "shuffled-pairs"),
        ({"before_onset": ABOVE}, "pre-stimulus"),
        ({"n_shared_pictures": 3}, "stimulus-disjoint"),
        ({"first_losses": (1.2, 3.2)}, "fresh-weights"),
    ],
)
def test_each_decisive_control_fells_the_claim_and_is_named(changed, name):
    verdict, reason, controls = audited(**changed)
    assert verdict == "unsupported"
    assert controls[name].verdict == "unsupported"
    assert controls[name].title in reason
    assert [one.name for one in controls.values() if one.is_decisive and one.verdict == "unsupported"] == [name]


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"codes": lost(0.3, 0.9, 0.9)}, "random-codebook"),
        ({"pictures": AT_CHANCE}, "picture-retrieval"),
        ({"selection": Selection(fixed=0.2, by_other_seeds=0.2, chosen=0.6, n_passes=12)}, "selection-gap"),
    ],
)
def test_what_does_not_decide_is_stated_all_the_same(changed, name):
    verdict, _, controls = audited(**changed)
    assert verdict == "supported"
    assert controls[name].verdict == "unsupported"
    assert not controls[name].is_decisive


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"order": UNKNOWN, "blocks": "blocks are unknown"}, ["When any segment", "blocks are unknown"]),
        ({"order": {}, "blocks": "blocks are unknown"}, ["no order audit"]),
        ({"purge": "Onsets are unknown."}, ["Onsets are unknown."]),
        ({"shuffled": "training failed"}, ["training failed"]),
        ({"order": UNKNOWN, "blocks": lost(0.12, 0.11, 0.4)}, ["too little is left to train on"]),
    ],
)
def test_what_must_be_answered_and_is_not_leaves_the_claim_untested_and_says_which(changed, named):
    verdict, reason, _ = audited(**changed)
    assert verdict == "not testable"
    for text in named:
        assert text in reason


def test_blocks_left_out_stand_in_for_an_unknown_order():
    verdict, _, controls = audited(order=UNKNOWN, slow={"below 5 Hz": AT_CHANCE})
    assert verdict == "supported"
    assert controls["order"].verdict == "not testable"


def test_a_small_loss_without_shared_blocks_is_stated_and_does_not_fell_the_claim():
    verdict, _, controls = audited(blocks=lost(0.6, 0.5, 0.001))
    assert verdict == "supported"
    assert "inflated by 10.0 %, so quote the lower one" in controls["leave-block-out"].reason


def test_a_large_loss_that_may_be_accident_is_no_alarm():
    assert audited(blocks=lost(0.6, 0.3, 0.2))[0] == "supported"
    verdict, _, controls = audited(blocks=lost(0.25, 0.15, 0.2), order=UNKNOWN, slow={})
    assert (verdict, controls["leave-block-out"].verdict) == ("not testable", "not testable")


def test_slow_waves_speak_against_a_claim_only_where_time_tells_the_class():
    assert audited(slow={"below 5 Hz": ABOVE})[2]["slow-drift below 5 Hz"].verdict == "supported"
    assert audited(slow={"below 5 Hz": ABOVE}, order=UNKNOWN)[2]["slow-drift below 5 Hz"].verdict == "not testable"
    assert audited(slow={"below 5 Hz": ABOVE}, order=RED)[2]["slow-drift below 5 Hz"].verdict == "unsupported"
    assert audited(slow={"below 5 Hz": AT_CHANCE}, order=RED)[2]["slow-drift below 5 Hz"].verdict == "supported"


def test_what_remains_without_shared_blocks_is_offered_instead_of_a_confounded_score():
    _, reason, _ = audited(order=RED, blocks=lost(0.7, 0.5, 0.001))
    assert "what can be quoted instead is the score without shared blocks: 50.0 %" in reason
    assert "instead" not in audited(order=RED, blocks=lost(0.7, 0.15, 0.001))[1]


def test_alarms_are_corrected_for_each_other():
    """One of four at 0.02 is what chance gives; alone it would be an alarm."""
    hint = dataclasses.replace(AT_CHANCE, p=0.02)
    assert audited(in_blocks=hint)[0] == "supported"
    alone = {"blocks": "unknown", "shuffled": AT_CHANCE, "before_onset": "none", "in_blocks": hint}
    assert audited(**alone)[2]["shuffled-in-blocks"].verdict == "unsupported"


def test_an_unmatched_comparison_says_so():
    assert "more to train on" in audited(blocks=lost(0.6, 0.5, 0.3, is_matched=False))[2]["leave-block-out"].reason


def test_the_result_is_plain_values_with_the_run_s_circumstances():
    verdict, reason, controls = judge(SOUND)
    result = AuditResult(
        verdict=verdict,
        reason=reason,
        claim="it",
        metric="val/class_top1",
        seeds=(1, 2),
        controls=controls,
        circumstances={"code": "abc", "dataset": {"name": "demo"}},
    )
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain["verdict"] == "supported"
    assert plain["dataset"]["name"] == "demo"
    assert plain["seeds"] == [1, 2]
    expected = {"name", "title", "verdict", "reason", "value", "low", "high", "chance", "p", "n", "source"}
    assert all(expected <= control.keys() for control in plain["controls"])
