"""What answers to a simulated picture, where in the head and when: the planted part of `simulate`, as plain arrays.

    evoked_CT = sum_k a_k(picture) L_C,k h_k(t)        k runs over groups, their dipoles, their time profiles

- occipital, 80-160 ms: dipoles with receptive fields. Each answers to the object at its place, on the other side and
  upside down as in visual cortex, with a strength set by one low-level feature per profile.
- temporal, 160-320 ms: a fixed random code of the class over dipoles and profiles.
- frontal, 320-440 ms: the same, weakly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eegvision.ingest import stimuli

END_S = 0.44
"""End of the last response."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Dipoles that answer in one interval, named by the scalp sites they lie below.

    `share` is the rms of their response relative to the other groups'.
    """

    name: str
    interval_s: tuple[float, float]
    n_profiles: int
    sites: tuple[str, ...]
    share: float

    def profiles(self, time_s: np.ndarray) -> np.ndarray:
        """Return the time courses [profile, T]: cos^2 bumps that overlap by half and fill the interval exactly."""
        start, end = self.interval_s
        half = (end - start) / (self.n_profiles + 1)
        peaks = start + half * np.arange(1, self.n_profiles + 1)
        distance = np.clip((time_s[None, :] - peaks[:, None]) / half, -1, 1)
        return np.cos(np.pi / 2 * distance) ** 2


# An occipital dipole sees the quarter of the picture opposite to it both ways: sites follow `_FIELDS`, first medial
# ones (early visual cortex), then lateral ones.
GROUPS = (
    Group(
        name="occipital",
        interval_s=(0.08, 0.16),
        n_profiles=3,
        sites=("OI2h", "OI1h", "POO2", "POO1", "POO10h", "POO9h", "PO4", "PO3"),
        share=1.0,
    ),
    Group(
        name="temporal",
        interval_s=(0.16, 0.32),
        n_profiles=3,
        sites=("P8", "P7", "TP8", "TP7", "TP10", "TP9"),
        share=0.8,
    ),
    Group(name="frontal", interval_s=(0.32, END_S), n_profiles=2, sites=("AF4", "AF3", "Fz"), share=0.2),
)
SITES = tuple(site for group in GROUPS for site in group.sites)

_FIELDS = ((0.3, 0.3), (0.3, 0.7), (0.7, 0.3), (0.7, 0.7))  # (row, column): upper left, upper right, lower left, ...
_FIELD_SD = 0.2
_DRIVES = (("contrast", "size", "upright"), ("red_green", "blue_yellow", "oblique"))  # medial, lateral; per profile
_OCCIPITAL_MEANS = (0.6, 0.2, -0.5)  # per profile: P1, then N1
_FEATURE_GAIN = 0.6  # change of a response per standard deviation of its feature
_MEANS = {"P8": -1.5, "P7": -1.2, "AF4": 0.7, "AF3": 0.7, "Fz": 1.0}  # what classes share: N170, late positivity


def class_codes(n_classes: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return, per group driven by class, the amplitudes [class, dipole, profile]."""
    codes = {}
    for group in GROUPS[1:]:
        code = rng.standard_normal((n_classes, len(group.sites), group.n_profiles))
        code[:, :, 0] += [_MEANS.get(site, 0.0) for site in group.sites]
        codes[group.name] = code
    return codes


def amplitudes(scenes: Sequence[stimuli.Scene], feature_MF: np.ndarray, codes: dict[str, np.ndarray]) -> np.ndarray:
    """Return the amplitude of every component for every picture, [M, K].

    Occipital, for a dipole with its receptive field at r and a profile driven by feature f, object at x:
        a = exp(-|x - r|^2 / 2 sd^2) (mean of the profile + gain clip(z_f, -2.5, 2.5))

    Args:
        feature_MF: `stimuli.low_level` of every scene, standardised over scenes.
        codes: from `class_codes`.
    """
    place_M2 = np.array([(scene.row, scene.column) for scene in scenes])
    field_MR = np.exp(-0.5 * ((place_M2[:, None] - np.array(_FIELDS)) ** 2).sum(axis=-1) / _FIELD_SD**2)
    change_MF = _FEATURE_GAIN * np.clip(feature_MF, -2.5, 2.5)
    columns = []
    for drives in _DRIVES:
        driving = [stimuli.FEATURES.index(feature) for feature in drives]
        strength_MP = np.array(_OCCIPITAL_MEANS) + change_MF[:, driving]
        columns.append((field_MR[:, :, None] * strength_MP[:, None, :]).reshape(len(scenes), -1))
    label_M = np.array([scene.label for scene in scenes])
    columns += [code[label_M].reshape(len(scenes), -1) for code in codes.values()]
    return np.concatenate(columns, axis=1)


def components(source_CS: np.ndarray, time_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lead field [C, K] and time course [K, T] of every component, given those of the dipoles at `SITES`."""
    profiles = [np.tile(group.profiles(time_s), (len(group.sites), 1)) for group in GROUPS]
    repeats = np.concatenate([np.full(len(group.sites), group.n_profiles) for group in GROUPS])
    return np.repeat(source_CS, repeats, axis=1), np.concatenate(profiles)


def scale_to_rms(heads: Sequence[np.ndarray], time_s: np.ndarray, amplitude_MK: np.ndarray, rms: float) -> np.ndarray:
    """Return a factor per component, [K], with which what differs between pictures has this rms over heads.

    Groups have their shares of it and, since they do not overlap in time, their squares add up. With d the amplitudes
    less their mean over pictures:

        rms^2 = mean over m, c, t of (sum_k d_mk L_ck h_kt)^2 = sum_kl (d'd)_kl (L'L)_kl (h h')_kl / (M C T)
    """
    power_KK = np.zeros((amplitude_MK.shape[1],) * 2)
    for source_CS in heads:
        lead_CK, profile_KT = components(source_CS, time_s)
        power_KK += lead_CK.T @ lead_CK / len(lead_CK) * (profile_KT @ profile_KT.T) / len(time_s) / len(heads)
    power_KK *= np.cov(amplitude_MK, rowvar=False, bias=True)
    total_share = math.sqrt(sum(group.share**2 for group in GROUPS))
    factors, start = [], 0
    for group in GROUPS:
        end = start + len(group.sites) * group.n_profiles
        found = math.sqrt(power_KK[start:end, start:end].sum())
        factors.append(np.full(end - start, rms * group.share / total_share / found))
        start = end
    return np.concatenate(factors)


def truth(
    channels: Sequence[str], heads: Sequence[np.ndarray], classes: Sequence[str], codes: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Return `groups`, `sources` and `codes` of a recording's truth, JSON-able; see `simulate.simulate`."""
    power_CS = np.mean([source_CS**2 for source_CS in heads], axis=0)
    groups, sources, start = {}, {}, 0
    for group in GROUPS:
        power_CG = power_CS[:, start : start + len(group.sites)]
        start += len(group.sites)
        is_visual = group.name not in codes
        projection_C = np.sqrt(power_CG.sum(axis=1))
        groups[group.name] = {
            "interval_s": list(group.interval_s),
            "driven_by": [feature for drives in _DRIVES for feature in drives] if is_visual else ["class"],
            "projection": dict(zip(channels, (projection_C / projection_C.max()).round(4).tolist(), strict=True)),
        }
        for number, (site, peak) in enumerate(zip(group.sites, power_CG.argmax(axis=0), strict=True)):
            sources[site] = {"group": group.name, "peak_channel": channels[peak], "driven_by": ["class"]}
            if is_visual:
                drives, field = _DRIVES[number // len(_FIELDS)], _FIELDS[number % len(_FIELDS)]
                sources[site] |= {"driven_by": list(drives), "receptive_field": list(field)}
    listed = {
        name: {each: code[label].round(3).tolist() for label, each in enumerate(classes)}
        for name, code in codes.items()
    }
    return {"groups": groups, "sources": sources, "codes": listed}
