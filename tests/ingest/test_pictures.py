"""eegvision.ingest.pictures: what decodes, exactly how, and what is refused by name."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from eegvision.ingest import pictures
from eegvision.vocab import InputError

RGB = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[0, 0, 0], [255, 255, 255], [10, 20, 30]]], dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_png_comes_back_exactly_as_height_width_rgb():
    pixels = pictures.decode(encoded(Image.fromarray(RGB)), "colours")
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, RGB)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_other_colour_modes_become_rgb(mode):
    grey = Image.fromarray(np.full((2, 3, 3), 255, dtype=np.uint8)).convert(mode)
    pixels = pictures.decode(encoded(grey, "JPEG" if mode == "CMYK" else "PNG"), "white")
    np.testing.assert_array_equal(pixels, np.full((2, 3, 3), 255))


def test_jpeg_decodes_near_its_source():
    flat = np.full((16, 16, 3), 128, dtype=np.uint8)
    assert np.abs(pictures.decode(encoded(Image.fromarray(flat), "JPEG"), "grey").astype(int) - 128).max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_file_cut_short_is_refused_by_name(kind, share):
    rng = np.random.default_rng(0)
    whole = encoded(Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
    pictures.decode(whole, "whole")
    with pytest.raises(InputError, match=r"cat.*cannot be decoded.*copy it again"):
        pictures.decode(whole[: int(share * len(whole))], "cat")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello, I am a picture", "cannot be decoded"),
        (encoded(Image.fromarray(RGB), "GIF"), "only whole JPEG and PNG"),
        (encoded(Image.fromarray(RGB), "TIFF"), "only whole JPEG and PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "only whole JPEG and PNG"),
        (encoded(Image.fromarray(np.zeros((2, 2), dtype=np.uint16))), "8 bits"),
        (encoded(Image.new("RGBA", (2, 2), (1, 2, 3, 128))), "transparent"),
    ],
    ids=["empty", "text", "gif", "tiff", "eps", "16-bit", "transparent"],
)
def test_other_things_are_refused_by_name(data, reason):
    with pytest.raises(InputError, match=f"dog.*{reason}"):
        pictures.decode(data, "dog")


@pytest.mark.parametrize("size", [(8_000, 8_001), (10_000, 9_500), (20_000, 20_000)], ids=["ours", "warned", "bomb"])
def test_a_bomb_is_refused_before_it_is_decoded(size):
    with pytest.raises(InputError, match=r"bomb.*at most 64,000,000"):
        pictures.decode(png_header(*size), "bomb")


def test_a_huge_or_missing_file_is_not_read(tmp_path):
    huge = tmp_path / "huge.png"
    with huge.open("wb") as file:
        file.truncate(pictures.MAX_FILE_BYTES + 1)  # sparse: takes no space
    with pytest.raises(InputError, match=r"huge\.png has 64,000,001 bytes"):
        pictures.read_picture(huge)
    with pytest.raises(InputError, match=r"gone\.png cannot be read"):
        pictures.read_picture(tmp_path / "gone.png")
    (tmp_path / "small.png").write_bytes(b"12")
    assert pictures.read_picture(tmp_path / "small.png") == b"12"
