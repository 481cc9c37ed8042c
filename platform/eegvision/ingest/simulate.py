"""Simulated recordings with a planted truth, against which every later claim can be checked.

Pictures come from `stimuli`. Their EEG is made by dipoles in a spherical head (MNE's forward model, no download):

    eeg_CT = sum_k a_k(image) L_C,k h_k(t - latency)  +  1/f background  +  alpha  +  sensor noise
             + slow drift  +  blinks,     bad channels replaced

What drives the evoked part is in `responses`: low-level features at the object's place, then its class.
Every segment has a random generator of its own, seeded by (seed, subject, order), so nothing depends on how many are
made at once. The truth is in the header of the recording and nowhere in the records.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import scipy.fft

from eegvision.ingest import responses, stimuli
from eegvision.ingest.sources import Drops, Header, Part, Recording
from eegvision.vocab import Fixation, InputError, Montage, Segment, Stimulus

_GAP_S = 0.06  # between the end of a segment and the next picture
_BLOCK_PAUSE_S = 10.0  # as in the PerceiveLab recordings
_SESSION_PAUSE_S = 600.0
_NOISE_UV = 8.0  # rms over channels and time of all that is not evoked, drift or artefact
_NOISE_SHARES = {"background": 0.65, "alpha": 0.25, "sensor": 0.10}  # of the noise's variance
_N_BACKGROUND = 48  # dipoles of the 1/f background
_BLINK_UV = 110.0
_PART_ROWS = 2048  # segments that are made, or made again after an interruption, at a time
_N_WAVES = 6  # sinusoids that make up each channel's drift

_ALPHA_SITES = ("POz", "PO3", "PO4", "Pz", "P3", "P4")
_EYE_SITES = ("Fp1", "Fp2")
_DEPTHS = {
    "response": 0.75,
    "alpha": 0.65,
    "eye": 0.84,
}  # distance from the centre in head radii; the brain ends at 0.9
_KEPT_FIRST = ("Oz", "P7", "P8", "AF3", "AF4", "PO3", "PO4", "Cz")  # channels every cap has

# Streams of random numbers, so that changing one option leaves the others' draws alone; 0 is for scenes.
_CODES, _BLOCKS, _SUBJECT, _SCHEDULE, _SEGMENT, _GAZE = range(1, 7)


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What to simulate. The same options give the same recording."""

    seed: int = 0
    """Seed of everything, >= 0."""
    n_subjects: int = 3
    """Subjects, 1 to 99, each with a gain, a latency, dipole positions, alpha and bad channels of its own."""
    n_classes: int = 10
    """Classes of objects, 2 to 80."""
    images_per_class: int = 30
    """Pictures of each class, at least 2."""
    repetitions: int = 2
    """Times each subject sees each picture, once per session, at least 1."""
    snr: float = 0.5
    """Rms over channels and time of what differs between pictures, over that of the noise, >= 0; 0 plants nothing."""
    design: Literal["random", "block"] = "random"
    """Blocks of pictures drawn without regard to class, or blocks of one class each (the famous confound)."""
    blocks_per_class: int = 2
    """Blocks per class and session (the random design has as many in all), 1 to `images_per_class`."""
    drift_uV: float = 6.0
    """Sd over the recording of each channel's slow potential, and of its slope (in uV per half segment), >= 0."""
    n_chans: int = 32
    """Channels, 8 to 128, spread evenly over the 128-channel 10-05 cap."""
    n_times: int = 110
    """Samples per segment, enough for 0.44 s: the end of the last planted response."""
    sfreq_hz: float = 250.0
    """Samples per second, 100 to 2000 Hz."""
    image_px: int = 80
    """Side of the square pictures, 16 to 1024 px."""
    viewers: int = 4
    """Viewers whose gaze is recorded on every picture, >= 0."""
    bad_channel_rate: float = 0.02
    """Share of channels that are bad in a session, in [0, 0.5]: half of them dead, half noisy."""
    artefact_rate: float = 0.05
    """Share of segments with a blink, in [0, 1]."""

    def __post_init__(self) -> None:
        _require(self, "seed", self.seed >= 0, "at least 0")
        _require(self, "n_subjects", 1 <= self.n_subjects <= 99, "1 to 99")
        _require(self, "n_classes", 2 <= self.n_classes <= stimuli.MAX_CLASSES, f"2 to {stimuli.MAX_CLASSES}")
        _require(self, "images_per_class", self.images_per_class >= 2, "at least 2")
        _require(self, "repetitions", self.repetitions >= 1, "at least 1")
        _require(self, "snr", 0 <= self.snr < math.inf, "at least 0")
        _require(self, "design", self.design in ("random", "block"), "random or block")
        most = self.images_per_class
        _require(self, "blocks_per_class", 1 <= self.blocks_per_class <= most, f"1 to images_per_class, {most}")
        _require(self, "drift_uV", 0 <= self.drift_uV < math.inf, "at least 0 uV")
        _require(self, "n_chans", len(_KEPT_FIRST) <= self.n_chans <= 128, f"{len(_KEPT_FIRST)} to 128")
        _require(self, "sfreq_hz", 100 <= self.sfreq_hz <= 2000, "100 to 2000 Hz")
        least = math.ceil(responses.END_S * self.sfreq_hz - 1e-6)
        _require(
            self, "n_times", self.n_times >= least, f"at least {least}: {responses.END_S} s at {self.sfreq_hz:g} Hz"
        )
        _require(self, "image_px", 16 <= self.image_px <= 1024, "16 to 1024 px")
        _require(self, "viewers", self.viewers >= 0, "at least 0")
        _require(self, "bad_channel_rate", 0 <= self.bad_channel_rate <= 0.5, "a share in [0, 0.5]")
        _require(self, "artefact_rate", 0 <= self.artefact_rate <= 1, "a share in [0, 1]")


def _require(options: Simulation, name: str, holds: bool, expected: str) -> None:
    if not holds:
        raise InputError(f"simulation.{name} is {getattr(options, name)!r}; expected {expected}")


PRESETS: dict[str, Simulation] = {
    "tiny": Simulation(
        n_subjects=2,
        n_classes=5,
        images_per_class=8,
        snr=0.8,
        n_chans=16,
        n_times=88,
        sfreq_hz=200.0,
        image_px=32,
        viewers=2,
    ),
    "demo": Simulation(),
    "paper": Simulation(
        n_subjects=6,
        n_classes=40,
        images_per_class=50,
        repetitions=1,
        snr=0.3,
        n_chans=128,
        n_times=440,
        sfreq_hz=1000.0,
        image_px=256,
    ),
}
"""Ready-made sizes: `tiny` for tests, `demo` for a laptop, `paper` the size of Palazzo et al.'s recordings."""


def simulate(options: Simulation, name: str = "demo") -> Recording:
    """Return a recording whose segments, pictures and fixations are made while they are read, any number of times.

    Segments are float32 in uV, average reference, in the order they were recorded, subject by subject.
    `header.truth` holds, JSON-able:
        options    the fields of `options`
        groups     per group of dipoles: interval_s, driven_by, and projection, the rms over its dipoles and over
                   subjects of the lead field at each channel, the largest being 1
        sources    per dipole: group, peak_channel, driven_by, and for occipital ones receptive_field (row, column)
        codes      per group driven by class, and class: the amplitude of every dipole and time profile
        subjects   gain, latency_s, alpha_hz, alpha_gain, and bad_channels ({session: {channel: dead or noisy}})
        blinks     ids of segments with a blink
        images     per image id: what `stimuli.object_mask` takes, and features, standardised over images
    """
    scenes = [
        stimuli.make_scene(options.seed, label, index)
        for label in range(options.n_classes)
        for index in range(options.images_per_class)
    ]
    ids = [f"{stimuli.class_name(scene.label)}-{n % options.images_per_class:03d}" for n, scene in enumerate(scenes)]
    feature_MF = np.stack([stimuli.low_level(scene) for scene in scenes])
    feature_MF = (feature_MF - feature_MF.mean(axis=0)) / (feature_MF.std(axis=0) + 1e-9)
    classes = tuple(stimuli.class_name(label) for label in range(options.n_classes))
    codes = responses.class_codes(options.n_classes, np.random.default_rng([options.seed, _CODES]))
    amplitude_MK = responses.amplitudes(scenes, feature_MF, codes)
    cap = _choose_channels(options.n_chans)
    subjects = _make_subjects(options, cap, amplitude_MK)
    header = Header(
        name=name,
        dialect="simulated",
        licence="CC0-1.0",
        montage=Montage(channels=cap.channels, positions_m=tuple(map(tuple, cap.position_C3.tolist()))),
        sfreq_hz=float(options.sfreq_hz),
        t_min_s=0.0,
        n_times=options.n_times,
        unit="uV",
        classes=classes,
        truth={
            "options": dataclasses.asdict(options),
            **responses.truth(cap.channels, [subject.source_CS for subject in subjects], classes, codes),
            "subjects": {subject.name: subject.truth(cap.channels) for subject in subjects},
            "blinks": [segment_id for subject in subjects for segment_id in subject.blinks()],
            "images": {
                image_id: {**scene.truth(), "features": dict(zip(stimuli.FEATURES, row, strict=True))}
                for image_id, scene, row in zip(ids, scenes, feature_MF.round(3).tolist(), strict=True)
            },
        },
    )

    def pictures() -> Iterator[Stimulus]:
        for image_id, scene in zip(ids, scenes, strict=True):
            encoded = stimuli.encode(stimuli.draw(scene, options.image_px))
            yield Stimulus(image_id=image_id, label=scene.label, label_name=classes[scene.label], encoded=encoded)

    def fixations() -> Iterator[Fixation]:
        for n, (image_id, scene) in enumerate(zip(ids, scenes, strict=True)):
            for viewer in range(options.viewers):
                rng = np.random.default_rng([options.seed, _GAZE, n, viewer])
                for row, column in stimuli.gaze(scene, viewer, options.image_px, rng):
                    yield Fixation(image_id=image_id, viewer=f"viewer-{viewer + 1}", row_px=row, column_px=column)

    parts = [
        Part(
            name=f"{subject.name} segments {first} to {stop - 1}",
            rows=stop - first,
            read=partial(_record, subject, options, ids, amplitude_MK, range(first, stop)),
            key=f"{options}",
        )
        for subject in subjects
        for first, stop in itertools.pairwise(
            [*range(0, len(subject.schedule.image), _PART_ROWS), len(subject.schedule.image)]
        )
    ]
    return Recording(header=header, parts=parts, stimuli=_Again(pictures), fixations=_Again(fixations))


def _record(
    subject: _Subject,
    options: Simulation,
    ids: list[str],
    amplitude_MK: np.ndarray,
    orders: range,
    dropped: Drops,  # noqa: ARG001  (nothing is)
) -> Iterator[Segment]:
    return subject.record(options, ids, amplitude_MK, orders)


@dataclass(frozen=True, kw_only=True)
class _Cap:
    """The channels of a recording: `rows` of the 128 of the full cap."""

    channels: tuple[str, ...]
    position_C3: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True, kw_only=True)
class _Schedule:
    """What a subject saw when, one entry per segment in the order of recording."""

    session: np.ndarray
    block: np.ndarray
    image: np.ndarray
    onset_s: np.ndarray
    has_blink: np.ndarray


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """One head and its recording. `lead_CJ` mixes waveforms: evoked (K), background, alpha, and one blink."""

    number: int
    gain: float
    latency_s: float
    alpha_hz: float
    alpha_gain: float
    source_CS: np.ndarray
    """Lead field of the responding dipoles, any unit."""
    lead_CJ: np.ndarray
    profile_KT: np.ndarray
    drift_hz_2CW: np.ndarray
    drift_rad_2CW: np.ndarray
    bad: tuple[dict[int, str], ...]
    """Per session: dead or noisy, by channel number."""
    schedule: _Schedule

    @property
    def name(self) -> str:
        return f"sub-{self.number:02d}"

    def segment_id(self, order: int) -> str:
        return f"{self.name}-{order:05d}"

    def blinks(self) -> list[str]:
        return [self.segment_id(int(order)) for order in np.flatnonzero(self.schedule.has_blink)]

    def truth(self, channels: tuple[str, ...]) -> dict[str, Any]:
        """Return what is planted in this subject alone, JSON-able."""
        bad = {
            str(session): {channels[channel]: kind for channel, kind in kinds.items()}
            for session, kinds in enumerate(self.bad)
        }
        known = {name: getattr(self, name) for name in ("gain", "latency_s", "alpha_hz", "alpha_gain")}
        return {**known, "bad_channels": bad}

    def record(self, options: Simulation, ids: list[str], amplitude_MK: np.ndarray, orders: range) -> Iterator[Segment]:
        """Yield the subject's segments in the order of recording."""
        plan = self.schedule
        spectrum = _pink_spectrum(options.n_times, options.sfreq_hz)
        for order in orders:
            image = int(plan.image[order])
            session = int(plan.session[order])
            yield Segment(
                segment_id=self.segment_id(order),
                subject=self.name,
                session=session,
                block=int(plan.block[order]),
                order=order,
                onset_s=float(plan.onset_s[order]),
                repetition=session,
                image_id=ids[image],
                eeg_CT=self._eeg(options, order, amplitude_MK[image], spectrum),
            )

    def _eeg(self, options: Simulation, order: int, amplitude_K: np.ndarray, spectrum: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng([options.seed, _SEGMENT, self.number, order])
        n_chans, n_times = options.n_chans, options.n_times
        time_s = np.arange(n_times, dtype=np.float32) / np.float32(options.sfreq_hz)
        varied_K = amplitude_K * (1 + 0.2 * rng.standard_normal(len(amplitude_K)))
        evoked_KT = varied_K[:, None].astype(np.float32) * self.profile_KT

        white = rng.standard_normal((_N_BACKGROUND, 2 * len(spectrum)), dtype=np.float32).view(np.complex64)
        pink_NT = scipy.fft.irfft(white * spectrum, axis=1)[:, :n_times]

        n_alpha = len(_ALPHA_SITES)
        rate_hz = self.alpha_hz + 0.4 * rng.standard_normal((n_alpha, 1), dtype=np.float32)
        phase = rng.uniform(0, 2 * np.pi, (n_alpha, 1)).astype(np.float32)
        strength = rng.rayleigh(size=(n_alpha, 1)).astype(np.float32)  # with the cosine: unit variance
        alpha_AT = strength * np.cos(2 * np.pi * rate_hz * time_s + phase)

        blink_1T = np.zeros((1, n_times), dtype=np.float32)
        if self.schedule.has_blink[order]:
            peak_s, width_s = rng.uniform(0, time_s[-1]), rng.uniform(0.05, 0.08)
            blink_1T[0] = rng.lognormal(0, 0.25) * np.exp(-0.5 * ((time_s - peak_s) / width_s) ** 2)

        eeg_CT = self.lead_CJ @ np.concatenate([evoked_KT, pink_NT, alpha_AT, blink_1T])
        sensor_uV = np.float32(_NOISE_UV * math.sqrt(_NOISE_SHARES["sensor"]))
        eeg_CT += sensor_uV * rng.standard_normal((n_chans, n_times), dtype=np.float32)
        offset_C, slope_C = self._drift(self.schedule.onset_s[order]) * options.drift_uV
        ramp_T = np.linspace(-1, 1, n_times)
        eeg_CT += (offset_C[:, None] + slope_C[:, None] * ramp_T).astype(np.float32)
        for channel, kind in self.bad[self.schedule.session[order]].items():
            noise_T = rng.standard_normal(n_times, dtype=np.float32)
            eeg_CT[channel] = 0.1 * noise_T if kind == "dead" else eeg_CT[channel] + 40 * noise_T
        return eeg_CT

    def _drift(self, onset_s: float) -> np.ndarray:
        """Return offset and slope of every channel at a time of the recording, [2, C] of unit variance over time."""
        waves = np.cos(2 * np.pi * self.drift_hz_2CW * onset_s + self.drift_rad_2CW)
        return waves.sum(axis=-1) * math.sqrt(2 / _N_WAVES)


class _Again:
    """An iterable that starts anew each time it is iterated."""

    def __init__(self, start: Callable[[], Iterator[Any]]) -> None:
        self._start = start

    def __iter__(self) -> Iterator[Any]:
        return self._start()


# ---- what a subject sees when


def _blocks(options: Simulation) -> list[np.ndarray]:
    """Return the pictures of every block, the same for all subjects and sessions."""
    rng = np.random.default_rng([options.seed, _BLOCKS])
    n_images = options.n_classes * options.images_per_class
    image_KI = np.arange(n_images).reshape(options.n_classes, options.images_per_class)
    if options.design == "random":
        return np.array_split(rng.permutation(n_images), options.n_classes * options.blocks_per_class)
    return [part for row in image_KI for part in np.array_split(rng.permutation(row), options.blocks_per_class)]


def _make_schedule(options: Simulation, subject: int) -> _Schedule:
    """Return when a subject saw what: blocks in an order, and pictures in a block in an order, of its own."""
    rng = np.random.default_rng([options.seed, _SCHEDULE, subject])
    blocks = _blocks(options)
    step_s = options.n_times / options.sfreq_hz + _GAP_S
    session, block, image, onset_s = [], [], [], []
    clock_s = 0.0
    for number in range(options.repetitions):
        for b in rng.permutation(len(blocks)).tolist():
            shown = rng.permutation(blocks[b])
            session.append(np.full(len(shown), number))
            block.append(np.full(len(shown), b))
            image.append(shown)
            onset_s.append(clock_s + step_s * np.arange(len(shown)))
            clock_s += step_s * len(shown) + _BLOCK_PAUSE_S
        clock_s += _SESSION_PAUSE_S
    n_segments = options.repetitions * sum(map(len, blocks))
    return _Schedule(
        session=np.concatenate(session),
        block=np.concatenate(block),
        image=np.concatenate(image),
        onset_s=np.concatenate(onset_s).round(4),
        has_blink=rng.uniform(size=n_segments) < options.artefact_rate,
    )


# ---- heads


@functools.cache
def _head() -> tuple[Any, tuple[str, ...], np.ndarray, Any]:
    """Return MNE's description of the full cap, its 128 channels, their positions in metres, and a fitted sphere."""
    import mne

    electrodes = mne.channels.make_standard_montage("brainproducts-RNP-BA-128").ch_names
    channels = tuple(name for name in electrodes if name not in ("FCz", "Fpz"))  # reference and ground
    info = mne.create_info(list(channels), 1000.0, "eeg", verbose="error")
    info.set_montage("colin27_1005", verbose="error")
    sphere = mne.make_sphere_model("auto", "auto", info, verbose="error")
    return info, channels, np.array([channel["loc"][:3] for channel in info["chs"]]), sphere


def _lead_field(point_N3: np.ndarray, moment_N3: np.ndarray) -> np.ndarray:
    """Return the potential of every dipole at the 128 electrodes, [128, N], reference at infinity."""
    import mne

    info, _, _, sphere = _head()
    space = mne.setup_volume_source_space(pos={"rr": point_N3, "nn": moment_N3}, sphere_units="m", verbose="error")
    forward = mne.make_forward_solution(info, None, space, sphere, meg=False, eeg=True, mindist=0, verbose="error")
    assert forward is not None
    assert np.allclose(forward["source_rr"], point_N3), "MNE moved or dropped dipoles"
    field_CN3 = forward["sol"]["data"].reshape(len(info.ch_names), len(point_N3), 3)  # unit moments along x, y, z
    return np.einsum("cni,ni->cn", field_CN3, moment_N3)


def _choose_channels(n_chans: int) -> _Cap:
    """Return a cap of `n_chans` channels: a few that must be there, then always the one farthest from the others."""
    _, channels, position_C3, _ = _head()
    chosen = [channels.index(name) for name in _KEPT_FIRST]
    while len(chosen) < n_chans:
        distance_C = np.linalg.norm(position_C3[:, None] - position_C3[chosen], axis=-1).min(axis=1)
        chosen.append(int(distance_C.argmax()))
    rows = np.sort(chosen)
    return _Cap(channels=tuple(channels[row] for row in rows), position_C3=position_C3[rows], rows=rows)


def _dipoles(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return points and moments of one head's dipoles: responses, background, alpha, eyes; all but background radial.

    Around their sites they are jittered by about 5 mm and 6 degrees, a topography of the subject's own.
    """
    _, channels, position_C3, sphere = _head()
    sites = (*responses.SITES, *_ALPHA_SITES, *_EYE_SITES)
    depth_N = np.repeat(list(_DEPTHS.values()), [len(responses.SITES), len(_ALPHA_SITES), len(_EYE_SITES)])
    outward_N3 = position_C3[[channels.index(site) for site in sites]] - sphere["r0"]
    outward_N3 = _unit(_unit(outward_N3) + 0.04 * rng.standard_normal(outward_N3.shape))
    moment_N3 = _unit(outward_N3 + 0.1 * rng.standard_normal(outward_N3.shape))
    depth_N = depth_N + 0.015 * rng.standard_normal(len(depth_N))

    anywhere_N3 = _unit(rng.standard_normal((_N_BACKGROUND, 3)))
    anywhere_N3[:, 2] = np.abs(anywhere_N3[:, 2] + 0.3) - 0.3  # few below the ears
    anywhere_N3 = _unit(anywhere_N3) * rng.uniform(0.3, 0.85, (_N_BACKGROUND, 1))
    any_moment_N3 = _unit(rng.standard_normal((_N_BACKGROUND, 3)))
    point_N3 = np.concatenate([depth_N[:, None] * outward_N3, anywhere_N3]) * sphere.radius + sphere["r0"]
    return point_N3, np.concatenate([moment_N3, any_moment_N3])


def _unit(vector_N3: np.ndarray) -> np.ndarray:
    return vector_N3 / np.linalg.norm(vector_N3, axis=1, keepdims=True)


# ---- subjects


def _make_subjects(options: Simulation, cap: _Cap, amplitude_MK: np.ndarray) -> list[_Subject]:
    """Return the subjects; one call of the forward model serves all their heads."""
    numbers = range(1, options.n_subjects + 1)
    rngs = [np.random.default_rng([options.seed, _SUBJECT, number]) for number in numbers]
    points, moments = zip(*(_dipoles(rng) for rng in rngs), strict=True)
    field_CN = _lead_field(np.concatenate(points), np.concatenate(moments))[cap.rows]
    field_CN -= field_CN.mean(axis=0)  # average reference
    cuts = np.cumsum([len(responses.SITES), len(_ALPHA_SITES), len(_EYE_SITES)])
    heads = [np.split(head_CN, cuts, axis=1) for head_CN in np.split(field_CN, options.n_subjects, axis=1)]
    time_s = np.arange(options.n_times) / options.sfreq_hz
    rms_uV = options.snr * _NOISE_UV
    scale_K = responses.scale_to_rms([head[0] for head in heads], time_s, amplitude_MK, rms_uV)
    return [
        _make_subject(options, number, rng, head, scale_K)
        for number, rng, head in zip(numbers, rngs, heads, strict=True)
    ]


def _make_subject(
    options: Simulation, number: int, rng: np.random.Generator, head: list[np.ndarray], scale_K: np.ndarray
) -> _Subject:
    source_CS, alpha_CA, eye_CE, background_CN = head
    gain, alpha_gain = rng.lognormal(0, 0.15), rng.lognormal(0, 0.35)
    latency_s = float(np.clip(0.004 * rng.standard_normal(), -0.008, 0.008))
    lead_CK, profile_KT = responses.components(source_CS, np.arange(options.n_times) / options.sfreq_hz - latency_s)
    blink_C = eye_CE.sum(axis=1)
    blink_C *= _BLINK_UV / np.abs(blink_C).max() * np.sign(blink_C[np.abs(blink_C).argmax()])
    lead_CJ = np.column_stack(
        [
            gain * scale_K * lead_CK,
            _with_rms(background_CN, _NOISE_UV * math.sqrt(_NOISE_SHARES["background"])),
            _with_rms(alpha_CA, alpha_gain * _NOISE_UV * math.sqrt(_NOISE_SHARES["alpha"])),
            blink_C,
        ]
    )
    # Drift has periods of 1.5 to 6 blocks: slow enough to be alike within a block, fast enough to tell blocks apart.
    n_in_block = options.images_per_class / options.blocks_per_class
    block_s = n_in_block * (options.n_times / options.sfreq_hz + _GAP_S) + _BLOCK_PAUSE_S
    waves = (2, options.n_chans, _N_WAVES)
    return _Subject(
        number=number,
        gain=float(gain),
        latency_s=latency_s,
        alpha_hz=float(rng.normal(10, 0.7)),
        alpha_gain=float(alpha_gain),
        source_CS=source_CS,
        lead_CJ=lead_CJ.astype(np.float32),
        profile_KT=profile_KT.astype(np.float32),
        drift_hz_2CW=1 / (block_s * np.exp(rng.uniform(math.log(1.5), math.log(6), waves))),
        drift_rad_2CW=rng.uniform(0, 2 * np.pi, waves),
        bad=tuple(_bad_channels(options, rng) for _ in range(options.repetitions)),
        schedule=_make_schedule(options, number),
    )


def _bad_channels(options: Simulation, rng: np.random.Generator) -> dict[int, str]:
    is_bad, is_dead = rng.uniform(size=(2, options.n_chans)) < [[options.bad_channel_rate], [0.5]]
    return {int(channel): "dead" if is_dead[channel] else "noisy" for channel in np.flatnonzero(is_bad)}


def _with_rms(lead_CN: np.ndarray, rms: float) -> np.ndarray:
    """Return the lead field scaled so that independent sources of unit variance give this rms over channels."""
    return lead_CN * (rms / math.sqrt((lead_CN**2).sum(axis=1).mean()))


def _pink_spectrum(n_times: int, sfreq_hz: float) -> np.ndarray:
    """Return amplitudes 1/sqrt(f), for which inverse FFTs of complex white noise have unit variance, no mean.

    Twice the segment's length, so that it has waves longer than itself and its ends do not meet.
    """
    n_long = scipy.fft.next_fast_len(2 * n_times, real=True)
    n_long += n_long % 2
    rate_hz = scipy.fft.rfftfreq(n_long, 1 / sfreq_hz)
    amplitude = np.zeros(len(rate_hz))
    amplitude[1:-1] = 1 / np.sqrt(rate_hz[1:-1])
    # irfft of z_f amplitude_f, real and imaginary part of z_f of unit variance: variance 4 sum(amplitude^2) / n^2
    return (amplitude * n_long / (2 * math.sqrt((amplitude**2).sum()))).astype(np.float32)
