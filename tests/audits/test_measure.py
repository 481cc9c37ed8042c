"""eegvision.audits.measure: centres by hand, seeds side by side, pictures on two sides."""

import dataclasses

import numpy as np

from eegvision import stream
from eegvision.audits import measure
from eegvision.config import RunConfig


def test_the_nearest_centre_by_hand():
    trained_MD = np.array([[0.0, 0.0], [0.0, 2.0], [4.0, 1.0], [9.0, 9.0]])
    asked_ND = np.array([[1.0, 1.0], [3.0, 1.0]])
    found = measure.nearest_centre(trained_MD, np.array([3, 3, 7, -1]), asked_ND)
    np.testing.assert_array_equal(found, [3, 7])


def test_seeds_are_put_side_by_side_whatever_the_order_they_answered_in():
    one = {
        "query_Q": np.array(["a", "b", "c"]),
        "image_Q": np.array([5, 6, 5]),
        "label_Q": np.array([0, -1, 0]),
        "image_answer_Q": np.array([5, 5, 6]),
        "label_answer_Q": np.array([0, 1, 1]),
    }
    other = {name: values[::-1] for name, values in one.items()}
    of_class = measure.joined([one, other], "class")
    assert of_class.query_Q.tolist() == ["a", "c"]  # without a class there is nothing to name
    np.testing.assert_array_equal(of_class.hit_SQ, [[True, False]] * 2)
    np.testing.assert_array_equal(measure.joined([other], "picture").hit_SQ, [[True, False, False]])


def test_pictures_that_are_trained_on_as_well_are_counted_by_content(tiny_dataset):
    config = RunConfig().with_overrides({"data.dataset": str(tiny_dataset)})
    store = stream.load_store(config.data, None)
    n_shared, said = measure.shared_pictures(config, store)
    assert n_shared == 0
    assert said.startswith("none of 4 scored pictures is trained on")
    rows = store.split.rows
    leaky = dataclasses.replace(store.split, rows=rows | {"val": np.union1d(rows["val"], rows["train"][:1])})
    assert measure.shared_pictures(config, dataclasses.replace(store, split=leaky))[0] == 1
