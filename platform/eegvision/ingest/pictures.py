"""Pictures from files we did not make: checked before they are believed, decoded in one place."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from eegvision.vocab import InputError

# A picture of 64 Mpx is 192 MB decoded; ImageNet's largest has about 20 Mpx and a file of 15 MB.
MAX_PIXELS = 64_000_000
MAX_FILE_BYTES = 64_000_000
_FORMATS = ("JPEG", "PNG")


def read_picture(path: Path) -> bytes:
    """Return the bytes of a picture file, still encoded and unchecked.

    Raises:
        InputError: the file is missing, unreadable or larger than `MAX_FILE_BYTES`.
    """
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise InputError(f"picture {path} has {size:,} bytes; at most {MAX_FILE_BYTES:,} are read: make it smaller")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"picture {path} cannot be read ({error.strerror}); check the path and its rights") from error


def decode(encoded: bytes, name: str) -> np.ndarray:
    """Decode a JPEG or PNG file completely, as it was stored (an orientation tag is not applied).

    Args:
        encoded: the whole file.
        name: what to call the picture in an error message.
    Returns:
        uint8 of shape [H, W, 3], red green blue.
    Raises:
        InputError: empty, damaged or cut short, neither JPEG nor PNG, more than `MAX_PIXELS` pixels, 16 bits
            per value, or partly transparent (what was seen then depended on the background).
    """
    if not encoded:
        raise InputError(f"picture {name} is empty (0 bytes); copy it again from its source")
    if len(encoded) > MAX_FILE_BYTES:
        raise InputError(f"picture {name} has {len(encoded):,} bytes; at most {MAX_FILE_BYTES:,} are read")
    try:
        # Named formats keep Pillow from trying its many other, less hardened readers.
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise _too_large(name, f"{width} x {height} pixels")
            if image.mode.startswith(("I", "F")):
                raise InputError(f"picture {name} has more than 8 bits per value; convert it to 8-bit PNG or JPEG")
            image.load()  # the header alone, and Pillow's verify(), accept a file that was cut short
            return np.asarray(_opaque(image, name).convert("RGB"))
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, "far too many pixels") from error
    except Exception as error:  # a damaged file makes Pillow raise OSError, SyntaxError, struct.error, zlib.error...
        raise InputError(
            f"picture {name} cannot be decoded ({error}); only whole JPEG and PNG files can be used: "
            "copy it again from its source or remove it"
        ) from error


def _too_large(name: str, what: str) -> InputError:
    return InputError(f"picture {name} has {what}; at most {MAX_PIXELS:,} are decoded: make it smaller")


def _opaque(image: Image.Image, name: str) -> Image.Image:
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema() != (255, 255):
        raise InputError(f"picture {name} is partly transparent; put it on the background it was shown on and save it")
    return image
