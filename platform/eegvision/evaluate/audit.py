"""From numbers to verdicts: does a score come from what was seen, or from when, from chance, from a leak?

Every control takes something away that the claim says the score owes nothing to, and asks whether the score stays; or
takes away all that the claim says it owes, and asks whether it goes. What each can show and what not stands at its
function. A claim is first made again, by fresh models of fixed length that nothing was chosen for.

Alarms of several controls add up, so their p-values are held against the level together (Holm 1979, Scand. J. Stat. 6,
65): where nothing is wrong, the chance of even one false alarm is `ALPHA`, and so is that of a claim from nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from eegvision.evaluate.answers import ALPHA, Drop, Score, Selection, holm, percent

Verdict = Literal["supported", "unsupported", "not testable"]

MOST = 0.5
"""Share of what is above chance that a score may lose with its leak: beyond, it is the leak's score."""

_CLASS_CHECKS = ("class from time", "class and block", "class and time", "same class again", "class and session")
_PICTURE_CHECKS = ("session code",)

LI = "Li et al. 2021"
REPLY = "Palazzo et al. 2020 (reply)"
AHMED = "Ahmed et al. 2021"
KILGALLEN = "Kilgallen et al. 2024, 2025"
FIELD = "known defects of released EEG-to-image code"


@dataclass(frozen=True, kw_only=True)
class Control:
    """One question put to a claim and its answer; `is_decisive` says whether `unsupported` here fells the claim."""

    name: str
    title: str
    verdict: Verdict
    reason: str
    source: str
    is_decisive: bool = True
    value: float | None = None
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    p: float | None = None
    n: int | None = None


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """All controls and what follows; `circumstances` are those of the run: data set, configuration, code, time."""

    verdict: Verdict
    reason: str
    claim: str
    metric: str
    seeds: tuple[int, ...]
    controls: tuple[Control, ...]
    circumstances: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        plain = {name: value for name, value in vars(self).items() if name != "circumstances"}
        controls = [dataclasses.asdict(control) for control in self.controls]
        return {**plain, "seeds": list(self.seeds), **self.circumstances, "controls": controls}


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that was measured for an audit; a text in place of numbers says why there are none.

    `order` holds the findings of the data set's order audit by check: grade, value and sentence. `purge` is None where
    no two segments share a sample (or nothing is known, see `order`).
    """

    metric: Literal["class", "picture"]
    order: Mapping[str, Mapping[str, Any]]
    claim: Score
    pictures: Score | str
    blocks: Drop | str
    in_blocks: Score | str
    shuffled: Score | str
    relabelled: Score | str
    slow: Mapping[str, Score | str]
    before_onset: Score | str
    codes: Drop | str
    purge: Drop | str | None
    n_shared_pictures: int
    near_duplicates: str
    selection: Selection
    first_losses: tuple[float, float] | str
    audited: str = ""


def judge(evidence: Evidence) -> tuple[Verdict, str, tuple[Control, ...]]:
    """Return the overall verdict, the reason for it, and every control's."""
    claim = _claim(evidence)
    order = _order(evidence)
    alarms = holm(_alarms(evidence, order.verdict))
    controls = (
        claim,
        order,
        _leak(evidence.blocks, alarms, "leave-block-out", "no block in common", "recorded in the same blocks", LI),
        _must_vanish(evidence.in_blocks, alarms, *_IN_BLOCKS),
        *(_slow(band, tested, alarms, order.verdict) for band, tested in evidence.slow.items()),
        _must_vanish(evidence.before_onset, alarms, *_BEFORE_ONSET),
        _purge(evidence, alarms),
        _must_vanish(evidence.shuffled, alarms, *_SHUFFLED),
        _disjoint(evidence),
        _fresh(evidence),
        _relabelled(evidence, order.verdict),
        _selection(evidence),
        _codes(evidence),
        _pictures(evidence),
    )
    return *overall(controls), controls


def overall(controls: Sequence[Control]) -> tuple[Verdict, str]:
    """Draw the conclusion.

    `unsupported` where the claim is not above chance or a decisive control speaks against it. `not testable` where one
    that must be answered is not: the claim has to be protected from time, by an order in which time does not tell the
    class or by holding without shared blocks; and from shared samples, shared pictures and the machinery itself.
    """
    by_name = {control.name: control for control in controls}
    against = [control for control in controls if control.is_decisive and control.verdict == "unsupported"]
    if against:
        reason = "; ".join(f"{control.title}: {control.reason}" for control in against)
        apart = by_name["leave-block-out"]
        if apart.verdict == "supported" and not {"claim", "shuffled-pairs"} & {control.name for control in against}:
            reason += f"; what can be quoted instead is the score without shared blocks: {apart.reason}"
        return "unsupported", reason
    open_ = []
    if not any(by_name[name].verdict == "supported" for name in ("order", "leave-block-out")):
        open_ += [by_name["order"], by_name["leave-block-out"]]
    for name in ("time-purged", "shuffled-pairs", "stimulus-disjoint"):
        if by_name[name].verdict != "supported":
            open_.append(by_name[name])
    if open_:
        return "not testable", "; ".join(f"{control.title}: {control.reason}" for control in open_)
    return "supported", "above chance on held-out pictures, and no control speaks against it"


def _alarms(evidence: Evidence, order: Verdict) -> dict[str, float]:
    """Return the p-values of all that can fell the claim by accident."""
    found: dict[str, float] = {}
    tests = {"shuffled-in-blocks": evidence.in_blocks, "pre-stimulus": evidence.before_onset}
    tests |= {"shuffled-pairs": evidence.shuffled}
    if order != "supported":
        tests |= {f"slow-drift {band}": tested for band, tested in evidence.slow.items()}
    found |= {name: tested.p for name, tested in tests.items() if isinstance(tested, Score)}
    drops = {"leave-block-out": evidence.blocks, "time-purged": evidence.purge}
    return found | {name: lost.p for name, lost in drops.items() if isinstance(lost, Drop)}


def _claim(evidence: Evidence) -> Control:
    """Is the score above chance at all?

    Fresh models, trained for a number of passes that was fixed before, are scored on the validation pictures: nothing
    was chosen on these for them. It cannot show where the score comes from; everything below does that.
    Sources: Ahmed et al. 2021 (a null for every model), Phipson & Smyth 2010.
    """
    tested = evidence.claim
    what = "the class of a held-out picture" if evidence.metric == "class" else "the held-out picture itself"
    said = "" if tested.is_above else "no more than guessing: "
    reason = f"{said}{what} is named in {tested}, {tested.n} pictures{evidence.audited}"
    verdict: Verdict = "supported" if tested.is_above else "unsupported"
    return _control("claim", "The claim itself", verdict, reason, AHMED, tested)


def _order(evidence: Evidence) -> Control:
    """Could WHEN a picture was shown name its class?

    From the order of presentation alone, without any EEG. Red fells the claim: where class and time coincide, every
    score on pictures of the trained blocks is one that slow drifts give as well, and it is for the claimant to show
    another. It cannot show that a model did use the drift. Sources: Li et al. 2021; Palazzo et al. 2020 (reply).
    """
    title = "Order of presentation"
    checks = {*_CLASS_CHECKS, *(_PICTURE_CHECKS if evidence.metric == "picture" else ()), "published critique"}
    if (known := evidence.order.get("order known")) is None or known["grade"] != "green":
        sentence = known["sentence"] if known else "The data set has no order audit."
        critique = evidence.order.get("published critique", {"grade": "green"})
        if critique["grade"] == "red":
            return _control("order", title, "unsupported", critique["sentence"], LI)
        return _control("order", title, "not testable", sentence, LI)
    worst: dict[str, list[str]] = {"red": [], "amber": []}
    for check, finding in evidence.order.items():
        if check in checks and finding["grade"] != "green":
            worst[finding["grade"]].append(finding["sentence"])
    if worst["red"]:
        return _control("order", title, "unsupported", " ".join(worst["red"]), LI)
    if worst["amber"]:
        return _control("order", title, "not testable", " ".join(worst["amber"]) + " Leave-block-out decides.", LI)
    return _control("order", title, "supported", "when a picture was shown does not tell its class", LI)


def _leak(lost: Drop | str, alarms: Mapping[str, float], name: str, without: str, shared: str, source: str) -> Control:
    """Does the score stay when training and scored segments have `without`?

    The same queries among the same pictures, by models trained with and without the leak on equally many pictures; for
    blocks, by cross-validation, each model on what lies in its blocks and what does not (`answers.crossed`). The claim
    falls if there is a loss beyond accident and it takes most (`MOST`) of what is above chance: then the score is the
    leak's before it is the picture's. A smaller loss is stated, and what remains is the score to quote. It cannot see
    a leak that lasts longer than what is held apart, and takes an unseen state of the recording, to which a model did
    not adapt, for a leak as well. Source for blocks: Li et al. 2021.
    """
    title = {"leave-block-out": "Leave blocks out", "time-purged": "No shared samples"}[name]
    if isinstance(lost, str):
        return _control(name, title, "not testable", lost, source)
    apart, before = lost.apart, lost.shared
    than = f"{percent(apart.value)} with {without}, {percent(before.value)} with segments {shared}"
    if not lost.is_matched:
        than += " (of models that had more to train on)"
    said = f"{than} ({apart.aside} without)"
    if not before.is_above and not apart.is_above:
        reason = f"too little is left to train on: {said}"
        return _control(name, title, "not testable", reason, source, apart)
    is_real = alarms[name] <= ALPHA
    if is_real and (lost.lost >= MOST or not apart.is_above):
        reason = f"{said}: {percent(min(1.0, lost.lost))} of what is above chance is owed to what is shared"
        return _control(name, title, "unsupported", reason, source, apart)
    if not apart.is_above:
        return _control(name, title, "not testable", f"{said}: too few pictures to tell these apart", source, apart)
    tail = f"; inflated by {percent(-lost.difference)}, so quote the lower one" if is_real else ""
    return _control(name, title, "supported", said + tail, source, apart)


def _purge(evidence: Evidence, alarms: Mapping[str, float]) -> Control:
    """As `_leak`, for windows that overlap in time: a validation segment then holds samples that were trained on."""
    if evidence.purge is None:
        return _control("time-purged", "No shared samples", "supported", "no two segments share a sample", FIELD)
    return _leak(evidence.purge, alarms, "time-purged", "no sample in common", "that overlap in time", FIELD)


_IN_BLOCKS = (
    "shuffled-in-blocks", "Pictures trade within blocks", REPLY,
    "blocks as wholes name the class: with pictures and segments paired at random within each block",
    "with pictures and segments paired at random within each block nothing is left",
)  # fmt: skip
_BEFORE_ONSET = (
    "pre-stimulus", "Before the picture", REPLY,
    "the EEG knows the answer before the picture is shown: from what precedes onset alone",
    "what precedes onset tells nothing",
)  # fmt: skip
_SHUFFLED = (
    "shuffled-pairs", "Pictures trade at random", FIELD,
    "the machinery itself leaks: with pictures and segments paired at random",
    "with pictures and segments paired at random nothing is left",
)  # fmt: skip


def _must_vanish(
    tested: Score | str, alarms: Mapping[str, float], name: str, title: str, source: str, alarm: str, calm: str
) -> Control:
    """Is the score gone when everything it may owe itself to is taken away?

    Pairs at random within a block keep what a block as a whole tells (its drift, and in a design of one class per
    block the class itself); EEG from before onset keeps all but the response, unless filters without phase or a
    neighbour's response reach there; pairs at random keep nothing. Silence here clears the claim of this one way only.
    Sources: Palazzo et al. 2020 (reply); Li et al. 2021.
    """
    if isinstance(tested, str):
        return _control(name, title, "not testable", tested, source)
    if alarms[name] <= ALPHA:
        return _control(name, title, "unsupported", f"{alarm} it is {tested}", source, tested)
    return _control(name, title, "supported", f"{calm}: {tested}", source, tested)


def _slow(band: str, tested: Score | str, alarms: Mapping[str, float], order: Verdict) -> Control:
    """Do the slowest waves alone give the score?

    An evoked response has slow parts too, so in a design where time does not tell the class this speaks neither way.
    Where it does, drift and response cannot be told apart, and a score from the slow waves is one that the drift gives
    as well. Sources: Palazzo et al. 2020 (reply), who concede that very slow drifts inflate; Li et al. 2021.
    """
    name, title = f"slow-drift {band}", f"Slow waves only, {band}"
    if isinstance(tested, str):
        return _control(name, title, "not testable", tested, REPLY)
    if order == "supported":
        reason = f"{tested}; time does not tell the class here, so this is slow response and not drift"
        return _control(name, title, "supported", reason if tested.is_above else str(tested), REPLY, tested)
    if alarms[name] > ALPHA:
        return _control(name, title, "supported", f"slow waves alone tell nothing: {tested}", REPLY, tested)
    if order == "not testable":
        reason = f"slow waves alone give {tested}; whether drift or response cannot be told without the order"
        return _control(name, title, "not testable", reason, REPLY, tested)
    return _control(name, title, "unsupported", f"slow waves alone, as drifts are, give {tested}", REPLY, tested)


def _disjoint(evidence: Evidence) -> Control:
    """Is any scored picture also trained on, by content?

    Counted on the very rows that were used. Pictures that are alike but not equal are reported, not judged.
    Sources: Kilgallen et al. 2024, 2025.
    """
    n, title = evidence.n_shared_pictures, "Pictures kept apart"
    if n:
        reason = f"{n} of {evidence.claim.n} scored pictures are also trained on"
        return _control("stimulus-disjoint", title, "unsupported", reason, KILGALLEN)
    return _control("stimulus-disjoint", title, "supported", evidence.near_duplicates, KILGALLEN)


def _fresh(evidence: Evidence) -> Control:
    """Did every training begin with weights of its own?

    The first pass of one of the last trainings is repeated alone, in another process, from its seed: equal losses mean
    that it did not go on from where an earlier one ended. It speaks for the trainings of this audit.
    """
    title = "Fresh weights"
    if isinstance(evidence.first_losses, str):
        return _control("fresh-weights", title, "not testable", evidence.first_losses, FIELD)
    among_others, alone = evidence.first_losses
    same = abs(among_others - alone) <= 0.01 * abs(alone)  # GPUs add up in any order
    reason = f"the loss of its first pass is {among_others:.4f}, and {alone:.4f} when that pass is repeated alone"
    return _control("fresh-weights", title, "supported" if same else "unsupported", reason, FIELD)


def _relabelled(evidence: Evidence, order: Verdict) -> Control:
    """What would time alone have scored, had classes come in blocks?

    Pictures in mixed order are given out anew so that classes follow one another. A score then shows that these models
    read the time of recording out of this EEG: not that the claim does, whose order protects it, but that nothing else
    does. Where classes did come in blocks it would follow the true classes too and shows nothing. Source: Li et al.
    2021, who found such labels to be decoded.
    """
    name, title, tested = "relabel", "Labels of a block design", evidence.relabelled
    if isinstance(tested, str):
        return _control(name, title, "not testable", tested, LI, is_decisive=False)
    if order == "unsupported":
        reason = "classes came in blocks as it is, so labels in blocks follow what was seen as well"
        return _control(name, title, "not testable", reason, LI, is_decisive=False)
    reason = f"time alone would have given {tested}"
    reason += ": only the mixed order protects the claim" if tested.is_above else ": these models do not read time"
    return _control(name, title, "supported", reason, LI, tested, is_decisive=False)


def _selection(evidence: Evidence) -> Control:
    """How much of a score is owed to choosing the pass on the pictures it is scored on?

    Three rules side by side. The claim above is that of the fixed pass, so this fells nothing; it says what a figure
    of the third rule is worth. Passes chosen by other seeds were chosen on the same pictures, so a part that is common
    to all seeds is not seen. Source: practice of EEG-to-image work.
    """
    found, title = evidence.selection, "Selection gap"
    chance = evidence.claim.chance
    reason = f"last of {found.n_passes} passes {percent(found.fixed)}, chosen on the pictures scored "
    reason += percent(found.chosen)
    if found.by_other_seeds is None:
        reason = f"{reason}; chosen by other seeds: takes two seeds"
        return _control("selection-gap", title, "not testable", reason, FIELD, is_decisive=False)
    gap = found.chosen - found.by_other_seeds
    reason += f", chosen by other seeds {percent(found.by_other_seeds)}: a gap of {percent(gap)}"
    verdict: Verdict = "unsupported" if gap > MOST * max(0.0, found.chosen - chance) else "supported"
    return _control("selection-gap", title, verdict, reason, FIELD, is_decisive=False)


def _codes(evidence: Evidence) -> Control:
    """Does the image encoder learn more from EEG than from random codes of the classes?

    Class of held-out pictures by the nearest class centre of trained ones, in the embedding trained with EEG and in
    one trained with a random pattern per class. Codes without noise are labels, so they are hard to beat; where they
    are not beaten, an image score is no evidence of what a brain contributes. About the EEG score it says nothing.
    Source: Li et al. 2021.
    """
    name, title, lost = "random-codebook", "Random codes for EEG", evidence.codes
    verdict: Verdict
    if isinstance(lost, str):
        return _control(name, title, "not testable", lost, LI, is_decisive=False)
    said = f"class of pictures alone: {percent(lost.shared.value)} with EEG, {percent(lost.apart.value)} with codes"
    if lost.p <= ALPHA:
        verdict, tail = "supported", "EEG adds to the image side"
    elif lost.difference >= 0:
        verdict, tail = "unsupported", "what the image side learns needs no EEG"
    else:
        verdict, tail = "not testable", "too few pictures or seeds to tell these apart"
    return _control(name, title, verdict, f"{said}: {tail}", LI, lost.apart, is_decisive=False)


def _pictures(evidence: Evidence) -> Control:
    """Is the very picture retrieved more often than by guessing? Stated beside a claim about classes."""
    name, title, tested = "picture-retrieval", "The very picture", evidence.pictures
    if isinstance(tested, str):
        return _control(name, title, "not testable", tested, AHMED, is_decisive=False)
    verdict: Verdict = "supported" if tested.is_above else "unsupported"
    return _control(name, title, verdict, f"retrieved in {tested}", AHMED, tested, is_decisive=False)


def _control(
    name: str,
    title: str,
    verdict: Verdict,
    reason: str,
    source: str,
    tested: Score | None = None,
    *,
    is_decisive: bool = True,
) -> Control:
    numbers: dict[str, Any] = {} if tested is None else dataclasses.asdict(tested)
    return Control(
        name=name, title=title, verdict=verdict, reason=reason, source=source, is_decisive=is_decisive, **numbers
    )
