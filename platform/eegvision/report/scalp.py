"""Values of channels on the head seen from above, nose up: Palazzo's look, and MNE's.

Electrodes are laid flat by `panels.flat_positions`: their angle from the top is kept as distance (azimuthal equidistant
on the sphere fitted to them), so that electrodes below the ears have a place too.

Axes: C channels, H W pixels; the 2 of a place is (right, front) in radii of the head drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from eegvision.report import panels
from eegvision.vocab import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

Look = Literal["paper", "mne"]
Positions = Sequence[Sequence[float]] | np.ndarray

INK = "#333333"
_EQUATOR = 0.5 / 0.65  # where `panels.flat_positions` puts what is 90 degrees from the top
_INSET = 1.04  # of the rim, beyond the lowest electrodes
_RING, _N_RING = 1.6, 48  # places around the picture, beyond its corners, from which its edge is interpolated
_NEAREST = 3
_DRAWN_PX = 200  # side of the picture in a figure: at print size no difference to the full one is seen
_SIDE_PX, _SMOOTH_PX = 400, 13.0
_HEAD_M = 0.095  # MNE's head
_FEWEST = 4
# The right ear's outline.
_EAR_X = np.array([0.99, 1.02, 1.055, 1.08, 1.09, 1.08, 1.075, 1.06, 1.03, 0.99])
_EAR_Y = np.array([0.17, 0.21, 0.21, 0.18, 0.12, 0.02, -0.08, -0.16, -0.20, -0.18])


def top_view(positions_m: Positions) -> np.ndarray:
    """Return the places of electrodes on the head seen from above, [C, 2] in radii of the head drawn, nose at (0, 1).

    The rim is where the head is widest (90 degrees from the top), or just beyond the lowest electrode if that lies
    below; angles above 117 degrees are drawn as 117.

    Raises:
        InputError: positions are not known, not finite, or of fewer than 4 electrodes.
    """
    place_C2 = _flat(positions_m)
    return place_C2 / max(1.0, _INSET * float(np.linalg.norm(place_C2, axis=1).max()))


def scalp_image(
    value_C: np.ndarray, positions_m: Positions, *, side_px: int = _SIDE_PX, smooth_px: float = _SMOOTH_PX
) -> np.ndarray:
    """Return the map of values over the head, float64 [side_px, side_px], nose up, NaN outside the head.

    1. Electrodes are put at their places (`top_view`); the head fills the picture.
    2. Between them values are linear over the triangles of Delaunay's triangulation. At 48 places on a circle around
       the picture stands the mean of the three nearest electrodes, weighted by 1 / distance^2, so that the map goes on
       to the head's edge.
    3. A Gaussian of `smooth_px` standard deviation is laid over it.

    No value lies beyond those given, and a constant stays one. Palazzo et al., Section 7.1, give the size, the places
    and the Gaussian (arXiv 1810.10974); what is between electrodes they leave open.

    Raises:
        InputError: as `top_view`; or not one finite value for each electrode.
    """
    return np.where(np.hypot(*_pixels(side_px)) <= 1, _field(value_C, positions_m, side_px, smooth_px), np.nan)


def draw_scalp(
    axes: Axes,
    value_C: np.ndarray,
    positions_m: Positions,
    *,
    limits: tuple[float, float],
    cmap: str,
    channels: Sequence[str] | None = None,
    is_marked_C: np.ndarray | None = None,
    look: Look = "paper",
) -> AxesImage:
    """Draw a map with head, nose, ears and electrodes into axes; return it, for a colour bar.

    Args:
        axes: to draw in, turned off.
        value_C, positions_m: as in `scalp_image`.
        limits: values at the ends of the colours.
        cmap: Matplotlib's name.
        channels: names, written in place of the dots.
        is_marked_C: electrodes in a cluster: filled dots, the others are pale.
        look: `paper` is `scalp_image`, every electrode within the head; `mne` is MNE's own topography (Clough-Tocher
            between electrodes, head drawn where it is widest, the map as far beyond it as there are electrodes).
    Raises:
        InputError: as `scalp_image`, or marks or names are not one for each electrode.
    """
    value_C = _checked(value_C, positions_m)
    for what, given in (("mark", is_marked_C), ("name", channels)):
        if given is not None and len(given) != len(value_C):
            raise InputError(f"{len(given)} {what}s for {len(value_C)} electrodes; give one for each")
    if look == "mne":
        shown, place_C2 = _draw_mne(axes, value_C, positions_m, limits, cmap)
    else:
        shown, place_C2 = _draw_paper(axes, value_C, positions_m, limits, cmap)
    if channels is not None:
        _names(axes, place_C2, channels)
        return shown
    _dots(axes, place_C2, is_marked_C)
    return shown


def normalised(value_C: np.ndarray) -> np.ndarray:
    """Return (v - min) / (max - min), 0 where all are equal: the scale of maps that are compared by their shape."""
    value_C = np.asarray(value_C, dtype=np.float64)
    spread = float(np.ptp(value_C))
    return (value_C - value_C.min()) / spread if spread > 0 else np.zeros_like(value_C)


def _field(value_C: np.ndarray, positions_m: Positions, side_px: int, smooth_px: float) -> np.ndarray:
    """Return `scalp_image` without its mask."""
    from scipy.interpolate import LinearNDInterpolator
    from scipy.ndimage import gaussian_filter
    from scipy.spatial import KDTree

    value_C, place_C2 = _checked(value_C, positions_m), top_view(positions_m)
    angle_R = 2 * np.pi * np.arange(_N_RING) / _N_RING
    ring_R2 = _RING * np.column_stack([np.sin(angle_R), np.cos(angle_R)])
    away_RN, nearest_RN = KDTree(place_C2).query(ring_R2, _NEAREST)
    weight_RN = 1 / away_RN**2
    ring_R = (weight_RN * value_C[nearest_RN]).sum(axis=1) / weight_RN.sum(axis=1)
    between = LinearNDInterpolator(np.concatenate([place_C2, ring_R2]), np.concatenate([value_C, ring_R]))
    return gaussian_filter(between(*_pixels(side_px)), smooth_px, mode="nearest")


def _pixels(side_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Return how far right and how far to the front the middle of each pixel lies, [H, W] each, in radii."""
    middle = (2 * np.arange(side_px) + 1 - side_px) / side_px
    right_HW, front_HW = np.meshgrid(middle, -middle)
    return right_HW, front_HW


def _draw_paper(
    axes: Axes, value_C: np.ndarray, positions_m: Positions, limits: tuple[float, float], cmap: str
) -> tuple[AxesImage, np.ndarray]:
    from matplotlib.patches import Circle

    part = _DRAWN_PX / _SIDE_PX
    image_HW = _field(value_C, positions_m, _DRAWN_PX, part * _SMOOTH_PX)
    low, high = limits
    shown = axes.imshow(image_HW, extent=(-1, 1, -1, 1), cmap=cmap, vmin=low, vmax=high, zorder=1)
    head = Circle((0, 0), 1, fill=False, edgecolor=INK, linewidth=0.8, zorder=5)
    axes.add_patch(head)
    shown.set_clip_path(head)
    line = {"color": INK, "linewidth": 0.8, "zorder": 0, "clip_on": False, "solid_joinstyle": "round"}
    axes.plot([-0.13, 0, 0.13], [0.98, 1.13, 0.98], **line)
    for side in (-1, 1):
        axes.plot(side * _EAR_X, _EAR_Y, **line)
    axes.set(xlim=(-1.12, 1.12), ylim=(-1.08, 1.16), aspect="equal")
    axes.set_axis_off()
    return shown, top_view(positions_m)


def _draw_mne(
    axes: Axes, value_C: np.ndarray, positions_m: Positions, limits: tuple[float, float], cmap: str
) -> tuple[AxesImage, np.ndarray]:
    import mne

    place_C2 = _HEAD_M * _flat(positions_m)
    shown, _ = mne.viz.plot_topomap(
        value_C, place_C2, axes=axes, show=False, sensors=False, contours=0, sphere=_HEAD_M, cmap=cmap, vlim=limits
    )
    for line in axes.lines:  # the head
        line.set(linewidth=0.8, color=INK)
    reach = 1.03 * max(1.05 * _HEAD_M, float(np.abs(place_C2).max()), 0.5 * float(np.ptp(shown.get_extent()[:2])))
    axes.set(xlim=(-reach, reach), ylim=(-reach, max(reach, 1.15 * _HEAD_M)))
    return shown, place_C2


def _dots(axes: Axes, place_C2: np.ndarray, is_marked_C: np.ndarray | None) -> None:
    """Draw electrodes: small ones, or, where some are marked, those large and the others pale."""
    size = float(np.clip(13 / len(place_C2) ** 0.5, 1.0, 2.0))
    dot = {"color": "black", "linestyle": "none", "marker": "o", "markeredgewidth": 0, "zorder": 6}
    if is_marked_C is None:
        axes.plot(*place_C2.T, markersize=0.8 * size, alpha=0.7, **dot)
        return
    marked_C = np.asarray(is_marked_C, dtype=bool)
    axes.plot(*place_C2[~marked_C].T, markersize=0.7 * size, alpha=0.35, **dot)
    axes.plot(*place_C2[marked_C].T, markersize=1.7 * size, **dot)


def _names(axes: Axes, place_C2: np.ndarray, channels: Sequence[str]) -> None:
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=0.8, foreground="white")]
    for name, (x, y) in zip(channels, place_C2, strict=True):
        axes.text(x, y, name, ha="center", va="center", fontsize=4, zorder=6, path_effects=halo)


def _flat(positions_m: Positions) -> np.ndarray:
    """Return places in which the head's widest circle has radius 1."""
    place_C3 = np.asarray(positions_m, dtype=np.float64)
    if place_C3.ndim != 2 or place_C3.shape[1:] != (3,) or len(place_C3) < _FEWEST or not np.isfinite(place_C3).all():
        raise InputError(
            f"a scalp map needs finite positions of {_FEWEST} electrodes at least, and has an array of shape "
            f"{place_C3.shape}; ingest the recording with 10-05 channel names or a montage"
        )
    return panels.flat_positions(place_C3) / _EQUATOR


def _checked(value_C: np.ndarray, positions_m: Positions) -> np.ndarray:
    value_C = np.asarray(value_C, dtype=np.float64)
    if value_C.shape != (len(positions_m),) and len(positions_m):
        raise InputError(
            f"values of shape {value_C.shape} for {len(positions_m)} electrodes; give one value for each electrode"
        )
    if not np.isfinite(value_C).all():
        raise InputError(
            f"the value of electrode {int(np.argmin(np.isfinite(value_C)))} is not finite; leave the electrode out of "
            "the values and the positions"
        )
    return value_C


def column_names(channels: Sequence[str] | None, n_chans: int) -> list[str]:
    """Return what the columns of a figure's numbers are called: the channels' names, or their numbers.

    Raises:
        InputError: not one name for each channel.
    """
    if channels is not None and len(channels) != n_chans:
        raise InputError(f"{len(channels)} names for {n_chans} channels; give one for each")
    return [f"channel_{number}" for number in range(n_chans)] if channels is None else list(channels)
