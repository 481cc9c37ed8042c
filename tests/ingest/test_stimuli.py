"""eegvision.ingest.stimuli: hand-worked masks and features, what a class fixes and what it does not, gaze, refusals."""

import dataclasses
import io
import json
import math

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation

from eegvision.ingest.stimuli import (
    FEATURES,
    MAX_CLASSES,
    SHAPES,
    class_name,
    draw,
    encode,
    gaze,
    low_level,
    make_scene,
    object_mask,
)
from eegvision.vocab import InputError

STRIPED_DISC = dataclasses.replace(make_scene(0, 0, 0), row=0.5, column=0.5, size=0.3, tilt_rad=0.0)


def feature(scene, name):
    return low_level(scene)[FEATURES.index(name)]


def test_every_class_looks_unlike_every_other():
    assert class_name(0) == "striped-disc"
    assert len({class_name(label) for label in range(MAX_CLASSES)}) == MAX_CLASSES == 80


def test_a_scene_follows_from_seed_class_and_index():
    assert make_scene(3, 4, 5) == make_scene(3, 4, 5)
    others = [make_scene(2, 4, 5), make_scene(3, 4, 6), make_scene(3, 5, 5)]
    assert len({scene.ground_seed for scene in [make_scene(3, 4, 5), *others]}) == 4


def test_a_class_fixes_shape_texture_and_hue_but_neither_place_nor_size_nor_ground():
    scenes = [make_scene(0, 7, index) for index in range(200)]
    assert {(scene.shape, scene.texture) for scene in scenes} == {("crescent", "waved")}
    turn = 2 * np.pi * (np.array([scene.object_hsv[0] for scene in scenes]) - 7 * 0.618034)
    assert np.abs(np.angle(np.exp(1j * turn))).max() < 0.1 * 2 * np.pi
    for name, least in (("row", 0.1), ("column", 0.1), ("size", 0.03), ("tilt_rad", 1.5), ("light", 0.08)):
        assert np.std([getattr(scene, name) for scene in scenes]) > least, name
    assert np.std([scene.ground_hsv[0][0] for scene in scenes]) > 0.25


def test_mask_of_a_disc_by_hand():
    # The disc has radius 0.9 of the size: 0.225 of the side about (row 0.4, column 0.6).
    mask = object_mask({"shape": "disc", "row": 0.4, "column": 0.6, "size": 0.25, "tilt_rad": 1.0}, 50)
    row, column = (np.indices((50, 50)) + 0.5) / 50
    np.testing.assert_array_equal(mask, np.hypot(row - 0.4, column - 0.6) < 0.225)


def test_mask_turns_anticlockwise_with_the_tilt():
    # The arrow points right, so a quarter turn makes it point up.
    flat = object_mask({"shape": "arrow", "row": 0.5, "column": 0.5, "size": 0.4, "tilt_rad": 0.0}, 64)
    turned = object_mask({"shape": "arrow", "row": 0.5, "column": 0.5, "size": 0.4, "tilt_rad": math.pi / 2}, 64)
    assert np.flatnonzero(flat.any(axis=0)).max() > 50  # the tip
    assert (np.rot90(flat) != turned).mean() < 0.01


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_fills_its_circle_and_stays_in_it(shape):
    mask = object_mask({"shape": shape, "row": 0.5, "column": 0.5, "size": 0.25, "tilt_rad": 0.3}, 200)
    distance = np.hypot(*((np.indices((200, 200)) + 0.5) / 200 - 0.5)[:, mask]) / 0.25
    assert 0.8 < distance.max() < 1.12
    assert 0.2 < mask.sum() / (math.pi * 50**2) < 1


def test_mask_redrawn_from_json_is_the_mask_drawn():
    scene = make_scene(1, 8, 2)
    again = json.loads(json.dumps(scene.truth()))
    np.testing.assert_array_equal(object_mask(again, 97), object_mask(scene.truth(), 97))


@pytest.mark.parametrize("label", range(10))
def test_what_the_object_changes_in_the_picture_is_its_mask(label):
    scene = make_scene(0, label, 1)
    hue, saturation, value = scene.object_hsv
    other = dataclasses.replace(scene, object_hsv=((hue + 0.5) % 1, saturation, value))
    differs = (draw(scene, 120) != draw(other, 120)).any(axis=-1)
    mask = object_mask(scene.truth(), 120)
    assert differs[mask].mean() > 0.98  # but where both are nearly black
    assert not differs[~binary_dilation(mask, iterations=2)].any()  # a soft edge reaches a little further


def test_a_picture_is_the_same_scene_at_every_size():
    small, large = draw(STRIPED_DISC, 40).astype(float), draw(STRIPED_DISC, 80).astype(float)
    shrunk = large.reshape(40, 2, 40, 2, 3).mean(axis=(1, 3))
    assert np.abs(small - shrunk).mean() < 6


def test_encoded_pictures_decode_to_what_was_drawn():
    picture = draw(STRIPED_DISC, 64)
    decoded = Image.open(io.BytesIO(encode(picture)))
    assert (decoded.format, decoded.size, decoded.mode) == ("JPEG", (64, 64), "RGB")
    assert np.abs(np.asarray(decoded).astype(float) - picture).mean() < 4


@pytest.mark.parametrize(
    ("tilt", "name", "low", "high"),
    [
        (0.0, "upright", 0.75, 1),
        (math.pi / 2, "upright", -1, -0.75),
        (math.pi / 4, "oblique", 0.75, 1),  # turned anticlockwise, upright stripes fall to the right
        (-math.pi / 4, "oblique", -1, -0.75),
    ],
)
def test_orientation_of_stripes(tilt, name, low, high):
    big = dataclasses.replace(STRIPED_DISC, size=0.45, tilt_rad=tilt)
    assert low <= feature(big, name) <= high


def test_size_is_the_log_of_the_share_covered():
    assert feature(STRIPED_DISC, "size") == pytest.approx(math.log(math.pi * 0.27**2), abs=0.02)


def test_colour_and_contrast_of_the_object():
    plain = dataclasses.replace(STRIPED_DISC, texture="plain", light=1.0)
    red, yellow, blue = (dataclasses.replace(plain, object_hsv=(hue, 1.0, 0.9)) for hue in (0, 1 / 6, 2 / 3))
    assert feature(red, "red_green") > 0.5 > feature(blue, "red_green")
    assert feature(blue, "blue_yellow") > 0.5 > -0.5 > feature(yellow, "blue_yellow")
    grounds = [((0.5, 0.1, value),) * 2 for value in (0.1, 0.9)]
    on_dark, on_bright = (dataclasses.replace(yellow, ground_hsv=ground) for ground in grounds)
    assert feature(on_dark, "contrast") > 0.3 > 0 > feature(on_bright, "contrast")


def test_gaze_falls_on_the_object_far_more_often_than_its_area_would_have_it():
    on_object, area, first = [], [], []
    for index in range(60):
        scene = make_scene(0, 0, index)
        points = list(gaze(scene, 0, 64, np.random.default_rng(index)))
        assert 4 <= len(points) <= 7
        assert all(0 <= row <= 63 and 0 <= column <= 63 for row, column in points)
        mask = object_mask(scene.truth(), 64)
        on_object += [mask[int(row), int(column)] for row, column in points[1:]]
        area.append(mask.mean())
        first.append(points[0])
    assert np.mean(area) < 0.2
    assert np.mean(on_object) > 0.5
    assert np.abs(np.mean(first, axis=0) - 32).max() < 2  # the first fixation is at the centre


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ({"shape": "disc", "row": 0.5, "column": 0.5, "size": 0.2}, r"lacks tilt_rad.*truth.images"),
        ({"shape": "egg", "row": 0.5, "column": 0.5, "size": 0.2, "tilt_rad": 0.0}, r"unknown shape 'egg'"),
    ],
)
def test_mask_refuses_a_truth_it_cannot_draw(truth, message):
    with pytest.raises(InputError, match=message):
        object_mask(truth, 32)
