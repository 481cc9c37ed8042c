"""eegvision.report.saliency_figures: numbers beside the maps, columns that are there, the paper's table."""

from dataclasses import replace

import numpy as np
import pytest

from eegvision.analyses.semantic import retinotopic_triplet
from eegvision.evaluate import saliency
from eegvision.report import published, saliency_figures
from eegvision.report.saliency_figures import MapRow
from eegvision.vocab import InputError
from report.heads import cap, check_files, picture, read_csv, read_svg, same_svg

PX = 24


def peak(row, column):
    rows, columns = np.mgrid[:PX, :PX]
    return np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 8)


def map_rows(with_gaze=True):
    return [
        MapRow(
            image_id=f"image-{n}",
            class_name="striped-disc",
            picture_HW3=picture(n, PX),
            gaze_HW=peak(5, 6) if with_gaze and n == 0 else None,
            maps={"classifier": 2 * peak(12, 3 + n) - 1, "EEG": peak(6, 7)},
            scores={"EEG": 1.25 + n},
        )
        for n in range(2)
    ]


def test_maps_have_their_scores_and_their_numbers(tmp_path):
    files = saliency_figures.maps_figure(map_rows(), tmp_path / "maps", title="Maps", score="NSS")
    check_files(files, "maps")
    text = read_svg(files)
    for words in ("Maps", "human gaze", "classifier", "EEG", "NSS 1.25", "NSS 2.25", "not recorded", "striped-disc"):
        assert words in text
    found = read_csv(files).set_index(["image", "map"])
    assert list(found.index) == [
        ("image-0", "human gaze"), ("image-0", "classifier"), ("image-0", "EEG"), ("image-1", "classifier"),
        ("image-1", "EEG"),
    ]  # fmt: skip
    columns = ["largest", "least", "centre_row_px", "centre_column_px"]
    assert found[columns].iloc[3].tolist() == pytest.approx([1, -1, 12, 4], abs=0.5)
    assert found["largest"].iloc[3] == pytest.approx(1.0)
    assert found["NSS"].fillna(-1).tolist() == [-1, -1, 1.25, -1, 2.25]


def test_without_gaze_its_column_is_left_out_and_the_same_maps_give_the_same_file(tmp_path):
    first, second = (
        saliency_figures.maps_figure(map_rows(with_gaze=False), tmp_path / name, title="Maps") for name in ("a", "b")
    )
    assert "human gaze" not in read_svg(first)
    assert same_svg(first, second)


def test_rows_that_do_not_fit_are_refused(tmp_path):
    row = map_rows()[0]
    changed = replace(row, maps={"EEG": row.maps["EEG"]})
    broken = replace(row, maps={**row.maps, "EEG": np.full((PX, PX), np.nan)})
    grey = replace(row, picture_HW3=row.picture_HW3 / 255)
    for rows, message in (
        ([], "0 rows"),
        ([row, changed], "same detectors"),
        ([broken], "the EEG map of picture 'image-0'"),
        ([grey], "uint8"),
    ):
        with pytest.raises(InputError, match=message):
            saliency_figures.maps_figure(rows, tmp_path / "maps", title="Maps")


def test_scales_stand_beside_their_sum(tmp_path):
    drop_SHW = np.stack([0.01 * peak(4, 4), 0.5 * peak(10, 10) - 0.1])
    files = saliency_figures.scale_figure(picture(0, PX), drop_SHW, (3, 17), tmp_path / "scales")
    check_files(files, "scales")
    found = read_csv(files)
    assert found["map"].tolist() == ["3 px", "17 px", "sum"]
    assert found["largest_loss"].tolist() == pytest.approx([0.01, 0.4, drop_SHW.sum(axis=0).max()])
    assert found["largest_gain"][1] == pytest.approx(0.1)
    assert found["sd"].tolist() == pytest.approx([*drop_SHW.std(axis=(1, 2)), drop_SHW.sum(axis=0).std()])
    for words in ("± 0.01", "± 0.4", "17 px", "sum"):
        assert words in read_svg(files)
    with pytest.raises(InputError, match="for 3 scales"):
        saliency_figures.scale_figure(picture(0, PX), drop_SHW, (3, 5, 9), tmp_path / "scales")


def triplets(n):
    generator = np.random.default_rng(0)
    return [
        retinotopic_triplet(
            f"image-{m}",
            np.moveaxis(picture(m, PX), -1, 0),
            np.stack([peak(8, 5 + m), peak(8, 5 + m)]),
            generator.standard_normal((2, 16)),
            ["a", "b"],
        )
        for m in range(n)
    ]


@pytest.mark.parametrize("n", [1, 5])
def test_triplets_keep_the_channels_values(tmp_path, n):
    montage, given = cap(16), triplets(n)
    files = saliency_figures.triplets_figure(
        given, montage.positions_m, tmp_path / "triplets", channels=montage.channels
    )
    check_files(files, "triplets")
    found = read_csv(files)
    assert found["image"].tolist() == [triplet.image_id for triplet in given]
    assert found[list(montage.channels)].to_numpy() == pytest.approx(np.stack([t.importance_C for t in given]))
    assert found["centre_column_px"][0] == pytest.approx(given[0].centre[1])


def test_triplets_without_positions_or_with_a_networks_picture_are_refused(tmp_path):
    (triplet,) = triplets(1)
    with pytest.raises(InputError, match="ingest the recording with 10-05"):
        saliency_figures.triplets_figure([triplet], (), tmp_path / "triplets")
    normalised = retinotopic_triplet(
        "image-0", np.full((3, PX, PX), -2.1), peak(8, 5)[None], triplet.importance_C[None], ["a"]
    )
    with pytest.raises(InputError, match="not what a network sees"):
        saliency_figures.triplets_figure([normalised], cap(16).positions_m, tmp_path / "triplets")


def scored(n_images=4):
    generator = np.random.default_rng(0)
    fixation_of = {f"image-{n}": generator.integers(0, PX, (6, 2)) for n in range(n_images)}
    map_of = {name: generator.random((PX, PX)) for name in fixation_of}
    return saliency.score_maps(map_of, fixation_of, 2.0)


def test_table_iv_has_every_published_row_and_ours_beside_it():
    ours = scored()
    table = saliency_figures.table_iv({"neural-driven": ours, "mine": ours}, caption="Of a test.")
    assert list(table.rows) == ["neural-driven", "mine", "SalNet", "SALICON", "classifier-driven", "human"]
    auc, nss, paper, cc = table.rows["neural-driven"]
    assert auc.value == pytest.approx(ours.auc_M.mean())
    assert (auc.low, auc.high) == ours.interval("s-auc")
    assert (auc.published, cc.published, paper.text) == (0.692, 0.378, "1.061")
    assert nss.text.startswith(f"{ours.nss_M.mean():.2f} [")
    assert (auc.chance, cc.chance) == (0.5, 0.0)
    assert [cell.published for cell in table.rows["mine"]] == [None] * 4
    for name, (auc_paper, _, cc_paper) in published.PALAZZO_IV.items():
        cells = table.rows[name]
        assert (cells[0].published, cells[3].published) == (auc_paper, cc_paper)
    text = table.to_text()
    assert "real recordings" in text
    assert "4 images" in text


def test_table_iv_needs_a_detector_and_two_images():
    with pytest.raises(InputError, match="at least one"):
        saliency_figures.table_iv({})
    one = replace(scored(2), image_ids=("image-0",))
    with pytest.raises(InputError, match="at least two"):
        saliency_figures.table_iv({"neural-driven": one})
