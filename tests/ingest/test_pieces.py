"""eegvision.ingest.pieces: rows are found where they lie, z-scores and squares by hand, damage is named."""

import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.fft
from PIL import Image

from eegvision.ingest import pieces, shards
from eegvision.ingest.pieces import Cut, Piece
from eegvision.ingest.places import place
from eegvision.vocab import InputError


def piece(*rows: int) -> Piece:
    return Piece(path=place("p"), group=0, place_n=np.arange(len(rows)), row_n=np.array(rows))


def rows_of(found: list[Piece]) -> list[list[int]]:
    return [one.row_n.tolist() for one in found]


@pytest.fixture
def copy(tiny_dataset, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_dataset, tmp_path / "copy"))


def test_zscore_by_hand():
    eeg_NCT = np.array([[[1.0, 3.0], [-5.0, 5.0]], [[7.0, 7.0], [0.0, 1.0]]])
    np.testing.assert_array_equal(pieces.segment_zscore(eeg_NCT), [[[-1, 1], [-1, 1]], [[0, 0], [-1, 1]]])


@pytest.mark.parametrize(("scale", "offset"), [(1e-6, 0.0), (1.0, -5000.0), (2e5, 1e4)])
def test_zscore_ignores_unit_and_offset(scale, offset):
    eeg_NCT = np.random.default_rng(0).standard_normal((3, 4, 50)).astype(np.float32)
    z_NCT = pieces.segment_zscore((scale * eeg_NCT + offset).astype(np.float32))
    assert z_NCT.dtype == np.float32
    np.testing.assert_allclose(z_NCT, pieces.segment_zscore(eeg_NCT), atol=2e-3)
    np.testing.assert_allclose(z_NCT.std(axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize("value", [0.1, -1e-7, 3e8])
def test_a_constant_channel_becomes_zero_not_noise(value):
    eeg_NCT = np.full((1, 1, 441), value, dtype=np.float32)
    assert (pieces.segment_zscore(eeg_NCT) == 0).all()


def test_square_takes_the_middle_of_a_wide_and_of_a_tall_picture():
    pixel_HW3 = np.zeros((2, 6, 3), dtype=np.uint8)
    pixel_HW3[:, 2:4] = [10, 20, 30]
    expected = np.broadcast_to(np.array([10, 20, 30])[:, None, None], (3, 2, 2))
    np.testing.assert_array_equal(pieces.square(pixel_HW3, 2), expected)
    np.testing.assert_array_equal(pieces.square(pixel_HW3.transpose(1, 0, 2), 2), expected)


def test_square_averages_when_it_shrinks():
    checkers_HW3 = np.repeat((np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2)
    shrunk = pieces.square(checkers_HW3, 8)  # without antialiasing: all black or all white
    assert shrunk.shape == (3, 8, 8)
    assert np.abs(shrunk.astype(int) - 127).max() <= 2


def test_among_and_cut_by_hand():
    found = [piece(0, 1, 2), piece(3, 4), piece(5, 6, 7)]
    chosen = pieces.among(found, np.array([1, 2, 6]))
    assert rows_of(chosen) == [[1, 2], [6]]
    assert [one.place_n.tolist() for one in chosen] == [[1, 2], [1]]
    assert rows_of(pieces.cut(found, 2, 6)) == [[2], [3, 4], [5]]
    assert rows_of(pieces.cut([found[2], found[0]], 1, 4)) == [[6, 7], [0]]
    assert rows_of(pieces.cut(found, 3, 3)) == []


@pytest.mark.parametrize(("table", "n_rows"), [("segments", 160), ("images", 40)])
def test_pieces_hold_every_row_of_a_table_once(tiny_dataset, table, n_rows):
    found = pieces.all_pieces(tiny_dataset, shards.read_manifest(tiny_dataset), table)
    assert np.concatenate([one.row_n for one in found]).tolist() == list(range(n_rows))


def test_eeg_is_read_from_its_place_over_shards_and_groups(tiny_dataset):
    manifest = shards.read_manifest(tiny_dataset)
    whole_NCT = shards.eeg_array(shards.read_segments(tiny_dataset, manifest, columns=["eeg"])["eeg"])
    wanted = np.array([3, 63, 64, 79, 80, 159])  # two parts of 80 rows, each in files of 64 and 16
    found = pieces.among(pieces.all_pieces(tiny_dataset, manifest, "segments"), wanted)
    assert [one.place_n.tolist() for one in found] == [[3, 63], [0, 15], [0], [15]]
    everything, _ = pieces.cut_of(manifest, (), None, "none")
    stored = pieces.read_eeg(found, everything)
    assert stored["row"].tolist() == wanted.tolist()
    np.testing.assert_array_equal(stored["eeg"], whole_NCT[wanted])
    z_NCT = pieces.read_eeg(found, replace(everything, normalise="segment-zscore"))["eeg"]
    np.testing.assert_array_equal(z_NCT, pieces.segment_zscore(stored["eeg"]))


def test_channels_and_times_are_cut_where_they_lie_and_the_manifest_follows(tiny_dataset):
    manifest = shards.read_manifest(tiny_dataset)
    whole_NCT = shards.eeg_array(shards.read_segments(tiny_dataset, manifest, columns=["eeg"])["eeg"])
    cut, described = pieces.cut_of(manifest, ("P*", "Oz"), (0.1, 0.2), "none")
    own = [n for n, name in enumerate(manifest.channels) if name.startswith("P") or name == "Oz"]
    assert 1 < len(own) < manifest.n_chans
    assert described.channels == cut.channels == tuple(manifest.channels[n] for n in own)
    assert described.montage.positions_m == tuple(manifest.montage.positions_m[n] for n in own)
    assert (described.n_times, described.t_min_s, described.fingerprint) == (20, 0.1, manifest.fingerprint)
    found = pieces.all_pieces(tiny_dataset, manifest, "segments")
    np.testing.assert_array_equal(pieces.read_eeg(found, cut)["eeg"], whole_NCT[:, own, 20:40])


def test_only_the_bytes_of_the_channels_asked_for_are_read(copy):
    """Every other channel's bytes are spoilt, and nothing notices."""
    manifest = shards.read_manifest(copy)
    found = pieces.all_pieces(copy, manifest, "segments")[:1]
    footer = pq.read_metadata(found[0].path.path).row_group(0)
    spans = {footer.column(n).path_in_schema: footer.column(n) for n in range(footer.num_columns)}
    before = pieces.read_eeg(found, Cut(channels=("Oz",), first=0, stop=88))["eeg"]
    content = bytearray(Path(found[0].path.path).read_bytes())
    for name in manifest.channels:
        if name != "Oz":
            span = spans[f"eeg.{name}"]
            content[span.data_page_offset : span.data_page_offset + span.total_compressed_size] = bytes(
                span.total_compressed_size
            )
    Path(found[0].path.path).write_bytes(content)
    np.testing.assert_array_equal(pieces.read_eeg(found, Cut(channels=("Oz",), first=0, stop=88))["eeg"], before)
    with pytest.raises(InputError, match="cannot be read"):
        pieces.read_eeg(found, Cut(channels=(manifest.channels[0],), first=0, stop=88))


def band_limited(eeg_NCT: np.ndarray, sfreq_hz: float, low_hz: float, high_hz: float) -> np.ndarray:
    """The same by SciPy's transform."""
    rate_hz_K = np.arange(eeg_NCT.shape[-1]) * sfreq_hz / (2 * eeg_NCT.shape[-1])
    code_NCK = scipy.fft.dct(eeg_NCT.astype(np.float64), norm="ortho")
    return scipy.fft.idct(code_NCK * ((rate_hz_K >= low_hz) & (rate_hz_K < high_hz)), norm="ortho")


@pytest.mark.parametrize("normalise", ["none", "segment-zscore"])
def test_a_band_is_kept_after_normalising_and_nothing_else(tiny_dataset, normalise):
    manifest = shards.read_manifest(tiny_dataset)
    found = pieces.all_pieces(tiny_dataset, manifest, "segments")
    whole, _ = pieces.cut_of(manifest, (), None, normalise)
    before_NCT = pieces.read_eeg(found, whole)["eeg"]
    parts = [pieces.cut_of(manifest, (), None, normalise, band)[0] for band in ((2.0, 20.0), (0.0, 2.0), (20.0, 101.0))]
    kept_NCT, *others = (pieces.read_eeg(found, cut)["eeg"] for cut in parts)
    np.testing.assert_allclose(kept_NCT, band_limited(before_NCT, 200.0, 2.0, 20.0), atol=1e-4 * before_NCT.std())
    np.testing.assert_allclose(kept_NCT + sum(others), before_NCT, atol=1e-4 * np.abs(before_NCT).max())


def test_a_straight_line_is_slow_and_a_fast_wave_is_not():
    time_T = np.linspace(-1, 1, 100)
    band_TT = pieces.band_projection(100, 100.0, (0.0, 5.0))
    assert np.linalg.norm(time_T @ band_TT) > 0.99 * np.linalg.norm(time_T)
    assert np.linalg.norm(np.cos(2 * np.pi * 20 * np.arange(100) / 100) @ band_TT) < 1.0
    np.testing.assert_allclose(band_TT @ band_TT, band_TT, atol=1e-6)


@pytest.mark.parametrize(
    ("band_hz", "normalise", "message"),
    [
        (
            (0.0, 1.0),
            "segment-zscore",
            r"0 to 1 Hz, but segments of 0.44 s have the frequencies 1.136, 2.273, .*mean is 0",
        ),
        ((0.2, 1.0), "none", r"have the frequencies 0, 1.136, \.\.\. up to 98.86 Hz; choose"),
        ((99.0, 200.0), "none", "99 to 200 Hz"),
    ],
)
def test_a_band_that_holds_nothing_is_refused(tiny_dataset, band_hz, normalise, message):
    with pytest.raises(InputError, match=message):
        pieces.cut_of(shards.read_manifest(tiny_dataset), (), None, normalise, band_hz)


@pytest.mark.parametrize(
    ("channels", "window_s", "message"),
    [
        (("Ozz",), None, r"data.channels has 'Ozz', but no channel of 'tiny' is called so; it has .*Oz"),
        (("Q*",), None, r"'Q\*'"),
        ((), (-0.1, 0.2), "data.window_s is -0.1 to 0.2 s, but segments of 'tiny' last from 0 to 0.44 s"),
        ((), (0.1, 0.5), "choose a window within"),
        ((), (0.1001, 0.1002), "choose a window within"),
    ],
)
def test_a_cut_that_does_not_exist_is_refused(tiny_dataset, channels, window_s, message):
    with pytest.raises(InputError, match=message):
        pieces.cut_of(shards.read_manifest(tiny_dataset), channels, window_s, "none")


def test_damaged_eeg_is_noticed_and_the_shard_named(copy):
    found = pieces.all_pieces(copy, shards.read_manifest(copy), "segments")
    path = Path(found[0].path.path)
    column = pq.read_metadata(path).row_group(0).column(8)
    with path.open("r+b") as file:
        file.seek(column.data_page_offset + column.total_compressed_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, io.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(
        InputError, match=r"part-00000-00000\.parquet cannot be read .*(checksum|corrupt).*ingest the data again"
    ):
        pieces.read_eeg(found[:1], pieces.cut_of(shards.read_manifest(copy), (), None, "none")[0])


def test_a_picture_cut_short_is_named(copy):
    manifest = shards.read_manifest(copy)
    path = copy / "images" / "part-00000.parquet"
    table = pq.read_table(path)
    encoded = table["encoded"].to_pylist()
    encoded[7] = encoded[7][: len(encoded[7]) // 2]
    number = table.schema.get_field_index("encoded")
    pq.write_table(table.set_column(number, "encoded", pa.array(encoded)), path)
    name = table["image_id"][7].as_py()
    with pytest.raises(InputError, match=f"picture '{name}' cannot be decoded"):
        pieces.read_images(pieces.all_pieces(copy, manifest, "images")[0], 8)


def test_images_are_decoded_squares(tiny_dataset):
    found = pieces.all_pieces(tiny_dataset, shards.read_manifest(tiny_dataset), "images")
    rows = pieces.read_images(found[0], 35)
    encoded = pq.read_table(found[0].path.path)["encoded"][4].as_py()
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB").resize((35, 35), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(rows["image"][4], expected.transpose(2, 0, 1))
