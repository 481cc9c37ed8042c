"""eegvision.report.quality: one file without scripts or network that says the grade, the reasons and the faults."""

import base64
import dataclasses
import functools
import hashlib
import io
import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from eegvision.ingest import order, simulate
from eegvision.ingest.quality import measure, merge
from eegvision.report import panels
from eegvision.report.quality import Portrait, quality_page


@functools.cache
def portrait(design):
    options = dataclasses.replace(simulate.PRESETS["tiny"], design=design, bad_channel_rate=0.2)
    recording = simulate.simulate(options, f"tiny {design} <b>")
    header, stimuli = recording.header, list(recording.stimuli)
    segments = [segment for part in recording.parts for segment in part.read(Counter())]
    label_of = {stimulus.image_id: stimulus.label for stimulus in stimuli}
    names = ("subject", "session", "block", "order", "onset_s", "image_id")
    table = pa.table({name: [getattr(segment, name) for segment in segments] for name in names})
    images = pa.table(
        {
            "image_id": list(label_of),
            "label": list(label_of.values()),
            "sha256": [hashlib.sha256(stimulus.encoded).hexdigest() for stimulus in stimuli],
        }
    )
    shards = [
        measure(
            np.stack([segment.eeg_CT for segment in some]),
            subject=[segment.subject for segment in some],
            session=[segment.session for segment in some],
            channels=header.montage.channels,
            sfreq_hz=header.sfreq_hz,
            t_min_s=header.t_min_s,
            unit=header.unit,
            seed=start,
        )
        for start in range(0, len(segments), 64)
        for some in [segments[start : start + 64]]
    ]
    return Portrait(
        name=header.name,
        facts={"made from": "simulated", "licence": "CC0 & <free>"},
        notes=["files without checksums"],
        dropped={"NaN or infinite EEG": 3, "never": 0},
        classes=header.classes,
        positions_m=header.montage.positions_m,
        segments=table,
        images=images,
        audit=order.audit(table, images, n_times=header.n_times, sfreq_hz=header.sfreq_hz, n_permutations=99),
        quality=functools.reduce(merge, shards),
        pictures=[(stimulus.label_name, stimulus.encoded) for stimulus in stimuli],
    )


def page(folder, shown):
    return quality_page(folder / "quality.html", shown).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def red_page(tmp_path_factory):
    return page(tmp_path_factory.mktemp("red"), portrait("block"))


def test_a_block_design_is_shown_red_with_reasons_and_remedy(red_page):
    assert '<span class="badge">red</span>' in red_page
    assert "time alone names the class" in red_page
    assert "Guessing the class of a picture from the picture shown nearest in time is right in 100 % of" in red_page
    assert "leave-block-out" in red_page


def test_a_random_design_is_shown_green(tmp_path):
    text = page(tmp_path, portrait("random"))
    assert '<span class="badge">green</span>' in text
    assert '<tr class="red">' not in text
    assert "checks of the order of presentation passed" in text


def test_the_page_needs_nothing_but_itself(red_page):
    assert "<script" not in red_page
    assert "@import" not in red_page
    fetched = re.findall(r'(?:src|href)="([^"#][^"]{0,30})', red_page) + re.findall(r"url\(([^#)][^)]{0,30})", red_page)
    assert fetched
    assert all(link.startswith("data:image/") for link in fetched), fetched
    assert len(red_page.encode()) < 1_500_000


def test_what_comes_from_the_data_is_text_and_not_markup(red_page):
    assert "tiny block &lt;b&gt;" in red_page
    assert "CC0 &amp; &lt;free&gt;" in red_page
    assert "<b>" not in red_page


def test_drops_notes_counts_and_faulty_channels_are_named(red_page):
    for text in ("NaN or infinite EEG", "files without checksums", "160 segments of 40 pictures seen by 2 subjects"):
        assert text in red_page
    assert "never" not in red_page
    planted = simulate.simulate(
        dataclasses.replace(simulate.PRESETS["tiny"], design="block", bad_channel_rate=0.2)
    ).header.truth["subjects"]
    dead = {
        channel
        for subject in planted.values()
        for kinds in subject["bad_channels"].values()
        for channel, kind in kinds.items()
        if kind == "dead"
    }
    assert dead
    named = set(re.findall(r"<tr><th>(\w+)</th><td>nearly no signal", red_page))
    assert named == dead


def test_drawings_have_axis_labels_with_units_and_ids_of_their_own(red_page):
    for text in ("time after onset (ms)", "mean (µV)", "frequency (Hz)", "power density (µV²/Hz)", "Occipital"):
        assert text in red_page
    ids = re.findall(r'\bid="([^"]+)"', red_page)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', red_page))
    assert used <= set(ids)


def test_drawings_take_their_colours_from_the_page(red_page):
    drawn = red_page[red_page.index("<svg") :]
    assert "var(--ink)" in drawn
    assert not set(re.findall(r"#(?:010203|707172|d0d1d2|fdfcfb)", drawn))
    assert "prefers-color-scheme: dark" in red_page


def test_at_most_24_pictures_are_shown(red_page):
    assert red_page.count("<img ") == 24


def test_the_same_portrait_gives_the_same_bytes(tmp_path, red_page):
    assert page(tmp_path, portrait("block")) == red_page
    assert [file.name for file in tmp_path.iterdir()] == ["quality.html"]


def test_a_page_without_positions_order_or_classes_says_so(tmp_path):
    known = portrait("random")
    segments = known.segments
    for name, unknown in (("order", -1), ("block", -1), ("onset_s", float("nan"))):
        at = segments.schema.get_field_index(name)
        segments = segments.set_column(at, name, pa.array([unknown] * segments.num_rows))
    images = known.images.set_column(1, "label", pa.array([-1] * known.images.num_rows))
    quality = known.quality
    audit = order.audit(segments, images, n_times=88, sfreq_hz=200.0)
    unknown = {"segments": segments, "images": images, "quality": quality, "audit": audit}
    text = page(tmp_path, dataclasses.replace(known, **unknown, positions_m=(), pictures=(), classes=()))
    assert '<span class="badge">amber</span>' in text
    for sentence in ("No scalp maps", "There is no picture of class over time", "The pictures have no classes"):
        assert sentence in text


def test_volts_are_shown_in_microvolts(tmp_path, red_page):
    known = portrait("block")
    factors = dict.fromkeys(("sum_GC", "low_GC", "high_GC", "evoked_SCT"), 1e-6)
    factors |= dict.fromkeys(("square_GC", "power_CF"), 1e-12)
    scaled = {name: getattr(known.quality, name) * factor for name, factor in factors.items()}
    text = page(tmp_path, dataclasses.replace(known, quality=dataclasses.replace(known.quality, unit="V", **scaled)))
    sentence = r"Samples lie between [-.\d]+ and [-.\d]+ µV"
    assert re.findall(sentence, text) == re.findall(sentence, red_page) != []
    assert "power density (µV²/Hz)" in text
    assert "(V)" not in text


def test_many_presentations_are_stored_as_pixels_to_keep_the_page_small():
    rng = np.random.default_rng(0)
    label_N = rng.integers(0, 1654, 16_740)
    drawn = panels.class_over_time("big", np.arange(16_740), label_N, [], 1654, 1000)
    assert "data:image/png" in drawn
    assert len(drawn) < 400_000


def test_electrodes_lie_on_the_head_as_seen_from_above():
    # Right, left, front, back and top of a sphere of 9 cm whose centre is 4 cm up, and one below the ear.
    unit = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0.8, 0, -0.6]])
    place_C2 = panels.flat_positions(0.09 * unit + [0, 0, 0.04])
    assert place_C2[:5] == pytest.approx(np.array([[1, 0], [-1, 0], [0, 1], [0, -1], [0, 0]]) * (0.5 / 0.65), abs=1e-6)
    assert place_C2[5] == pytest.approx([1, 0], abs=0.05)


def with_power(factor_of, design="random"):
    """Return a portrait whose spectrum is 1/f times a factor."""
    known = portrait(design)
    hz = known.quality.frequencies_hz
    power_CF = np.tile(factor_of(hz) / np.maximum(hz, 1), (len(known.quality.channels), 1))
    return dataclasses.replace(known, quality=dataclasses.replace(known.quality, power_CF=power_CF))


@pytest.mark.parametrize("line_hz", [50, 60])
def test_power_at_the_line_is_told_where_there_is_a_peak(tmp_path, line_hz):
    step_hz = portrait("random").quality.frequencies_hz[1]
    text = page(tmp_path, with_power(lambda hz: 1 + 30.0 * (np.abs(hz - line_hz) < step_hz)))
    assert re.search(rf"[\d.]+ % of the power of a typical channel lies at {line_hz} Hz", text)
    assert "No power-line peak" not in text


def test_a_weak_peak_is_told_without_a_share_of_another_frequency(tmp_path):
    step_hz = portrait("random").quality.frequencies_hz[1]
    weak = with_power(lambda hz: np.where(hz <= 51, 1, 0.01 * (1 + 9 * (np.abs(hz - 60) < step_hz))))
    text = page(tmp_path, weak)
    assert "A small power-line peak at 60 Hz" in text
    assert "power of a typical channel lies" not in text


@pytest.mark.parametrize("factor_of", [np.ones_like, lambda hz: np.where(hz > 62, 1e-9, 1.0)], ids=["1/f", "filtered"])
def test_a_smooth_spectrum_or_the_edge_of_a_filter_is_no_power_line_peak(tmp_path, factor_of):
    text = page(tmp_path, with_power(factor_of))
    assert "No power-line peak." in text
    assert "power of a typical channel lies" not in text


def test_z_scores_have_axes_that_read_naturally(tmp_path):
    known = portrait("random")
    text = page(tmp_path, dataclasses.replace(known, quality=dataclasses.replace(known.quality, unit="zscore")))
    for label in ("power density (1/Hz)", "mean (z-score)", "standard deviation (z-score)"):
        assert label in text
    assert re.search(r"Samples lie between [-.\d]+ and [-.\d]+ \(z-score\)", text)


@pytest.mark.parametrize("in_a_line", [False, True])
def test_few_electrodes_or_a_line_of_them_get_no_map_but_a_note(tmp_path, in_a_line):
    known = portrait("random")
    places = known.positions_m[:7]
    if in_a_line:
        angle = np.linspace(-1, 1, len(known.positions_m))
        places = 0.09 * np.column_stack([0 * angle, np.sin(angle), np.cos(angle)])
        places = tuple(map(tuple, places.tolist()))
    text = page(tmp_path, dataclasses.replace(known, positions_m=places))
    assert f"{len(places)} electrodes tell too little of what lies between them" in text
    assert "Scalp map" not in text


def test_a_scalp_map_is_empty_far_from_the_electrodes():
    x, y = np.meshgrid([-0.3, -0.1, 0.1, 0.3], [-0.8, -0.6])
    place_C2 = np.column_stack([x.ravel(), y.ravel()])
    drawn = panels.scalp("map", "t", place_C2, np.arange(8.0), (0, 7), "viridis")
    encoded = re.search(r'href="data:image/png;base64,([^"]+)', drawn)
    assert encoded
    alpha = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded[1]))))[..., 3] / 255
    height = len(alpha)
    assert {alpha[0].max(), alpha[height // 2].max()} == {0.0}  # one edge, and the line between the ears
    assert max(alpha[int(0.15 * height)].max(), alpha[int(0.85 * height)].max()) == 1  # among the electrodes
    assert 0.05 < alpha.mean() < 0.25  # (0.6 + 0.24) * (0.2 + 0.24) / 4 = 0.09 of the square


@pytest.mark.parametrize(("top_hz", "labels"), [(50, ["2", "5", "10", "20", "50"]), (3, ["2"])])
def test_frequencies_are_labelled_1_2_5_and_the_legend_lies_below(top_hz, labels):
    hz = np.linspace(0, top_hz, 1 + top_hz // 2 if top_hz > 3 else 4)
    power_F = 1 / np.maximum(hz, 1)
    drawn = panels.spectrum("s", hz, {"frontal": power_F, "occipital": 2 * power_F}, "µV", (50.0, 60.0))
    ticks = drawn[drawn.index('id="s-matplotlib.axis_1"') : drawn.index('id="s-matplotlib.axis_2"')]
    found = re.findall(r">([\d.]+)</text>", ticks)
    assert set(labels) <= set(found)
    assert len(found) == len(set(found)) <= 6

    def y_of(text):
        found = re.search(rf'y="([\d.]+)"[^>]*>{re.escape(text)}</text>', drawn)
        assert found, text
        return float(found[1])

    assert y_of("frontal") > y_of("frequency (Hz)")


def test_a_spectrum_without_power_or_of_one_frequency_can_be_drawn():
    for hz in (np.array([0.0]), np.array([0.0, 4.0]), np.arange(20.0)):
        assert "frequency (Hz)" in panels.spectrum("s", hz, {"other": np.zeros(len(hz))}, "V", (50.0, 60.0))


def test_panels_may_grow_up_to_320_px_in_height():
    drawn = panels.amplitudes("a", np.logspace(-2, 2, 41), np.ones(40), "µV", 540)
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawn)
    most_px = re.search(r"max-width:(\d+)px", drawn)
    assert box
    assert most_px
    assert float(most_px[1]) * float(box[2]) / float(box[1]) == pytest.approx(320, abs=1)
