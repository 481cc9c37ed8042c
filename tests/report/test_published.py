"""eegvision.report.published: the figures add up, and none stands without its circumstances."""

import pytest

from eegvision.config import RunConfig
from eegvision.report import published


@pytest.mark.parametrize(("image", "eeg"), published.PALAZZO_I)
def test_table_one_names_our_encoders_and_its_averages_are_the_means(image, eeg):
    pair = published.PALAZZO_I[image, eeg]
    # As printed: one average (Inception-v3, GRU) is half a point above the mean of its two accuracies.
    slip = 0.0045 if (image, eeg) == ("inception_v3", "palazzo-gru") else 0.0
    assert pair.average == pytest.approx((pair.eeg + pair.image) / 2 + slip, abs=0.0011)
    config = RunConfig().with_overrides({"image.encoder": image, "eeg.encoder": eeg})
    assert (config.image.encoder, config.eeg.encoder) == (image, eeg)


def test_tables_two_and_three_agree_with_table_one():
    for image, gain in published.PALAZZO_II.items():
        assert gain.joint == max(pair.image for (own, _), pair in published.PALAZZO_I.items() if own == image)
    for eeg, gain in published.PALAZZO_III.items():
        assert gain.joint == published.PALAZZO_I["inception_v3", eeg].eeg


def test_every_row_of_the_field_says_gallery_channels_rule_and_source_and_is_possible():
    for row in published.THINGS_EEG2:
        assert all((row.gallery, row.channels, row.selection, row.source))
        assert 1 / 200 < row.top1 < (row.top5 or 1) <= 1
    assert len({(row.method, row.setting) for row in published.THINGS_EEG2}) == len(published.THINGS_EEG2)


def test_nice_is_found_with_the_figures_of_its_abstract():
    best = published.nice("NICE-GA", "within")
    assert best is not None
    assert (best.top1, best.top5) == (0.156, 0.428)
    assert published.nice("NICE-GA", "across") is None


def test_confounded_figures_are_marked_wherever_they_are_shown():
    assert published.PALAZZO.is_confounded
    assert not published.NICE.is_confounded
    *palazzo, things = published.tables()
    assert all("known-confounded" in " ".join(table.to_text().split()) for table in palazzo)
    assert "no ranking of encoders" in " ".join(things.to_text().split())
