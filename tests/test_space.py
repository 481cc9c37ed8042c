"""eegvision.space: a bad search space is refused before a sweep starts."""

import pytest

from eegvision.config import RunConfig
from eegvision.space import check_space, load_space
from eegvision.vocab import InputError

GOOD = """
BASE = {"train.max_passes": 3}
POINTS = [{"optim.lr": 0.001, "eeg.embed_dim": 32}]
def space(trial):
    trial.suggest_float("optim.lr", 1e-4, 1e-2, log=True)
    return {"image.embed_dim": trial.suggest_categorical("eeg.embed_dim", [32, 64])}
"""


def loaded(tmp_path, text):
    path = tmp_path / "space.py"
    path.write_text(text)
    return load_space(path)


def test_a_good_space_loads_with_what_it_fixes_and_tries_first(tmp_path):
    space = loaded(tmp_path, GOOD)
    check_space(space, RunConfig())
    assert space.base == {"train.max_passes": 3}
    assert len(space.points) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (", "does not run: SyntaxError"),
        ("import nowhere_to_be_found", "does not run: ModuleNotFoundError"),
        ("space = 3", r"defines no function space\(trial\)"),
    ],
)
def test_a_file_that_is_no_space_is_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        loaded(tmp_path, text)


def test_a_missing_file_names_those_beside_it(tmp_path):
    (tmp_path / "demo.py").touch()
    with pytest.raises(InputError, match=r"no search space at .*nope.py; files beside it: .*demo.py"):
        load_space(tmp_path / "nope.py")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"optim.lr", 1e-4', '"optim.rate", 1e-4'), "point 0 .* does not fit the space"),
        (("def space", 'POINTS[0]["optim.beta1"] = 0.5\ndef space'), "point 0 sets .'optim.beta1'., which the space"),
        (("[32, 64]", "[32, 0]"), "eeg.embed_dim is 0; expected at least 1"),
        (("image.embed_dim", "image.embed_size"), "unknown setting 'image.embed_size'"),
    ],
)
def test_a_bad_suggestion_is_found_before_the_sweep(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        check_space(loaded(tmp_path, GOOD.replace(*change)), RunConfig())
