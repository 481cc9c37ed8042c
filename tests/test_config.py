"""eegvision.config: round trips, refusals that name the path, what a fingerprint covers."""

import ast
import dataclasses
import inspect
import itertools
import json
from typing import Any, get_args

import pytest

from eegvision.config import (
    EEG_DEFAULTS,
    PLACES,
    DataConfig,
    EegConfig,
    EegEncoderName,
    ImageConfig,
    LossConfig,
    OptimConfig,
    Place,
    RunConfig,
    SweepConfig,
    TrainConfig,
)
from eegvision.vocab import InputError


def test_a_config_survives_the_way_through_plain_values():
    config = RunConfig().with_overrides(
        {"data.subjects": ["sub-01", "sub-02"], "loss.name": "info_nce", "optim.lr": 3e-4, "train.patience": 4}
    )
    assert RunConfig.from_dict(config.to_dict()) == config
    cut = RunConfig().with_overrides({"data.window_s": [0, 0.5], "data.channels": ["O*"], "data.purge_s": 1})
    assert cut.data.window_s == (0.0, 0.5)
    assert RunConfig.from_dict(json.loads(json.dumps(cut.to_dict()))) == cut


def test_overrides_leave_the_original_alone_and_turn_whole_numbers_into_floats():
    config = RunConfig()
    changed = config.with_overrides({"optim.lr": 1, "eeg.embed_dim": 64, "image.embed_dim": 64})
    assert (config.optim.lr, changed.optim.lr) == (1e-3, 1.0)
    assert isinstance(changed.optim.lr, float)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optim.lrr": 1.0}, "unknown setting 'optim.lrr'; did you mean 'optim.lr'"),
        ({"eeg.encoder": "vgg"}, r"eeg.encoder is 'vgg'; expected one of 'palazzo-lstm'"),
        ({"eeg.encoder": "tsconv", "eeg.hidden": 64}, r"eeg.hidden is set to 64, but 'tsconv' has no such setting"),
        (
            {"eeg.variant": "released"},
            r"eeg.variant is set to 'released', but 'palazzo-gru' .*\(only atm-s, eeg-channelnet, nice-ga, nice-sa\)",
        ),
        ({"eeg.encoder": "nice-sa", "eeg.variant": "both"}, "eeg.variant is 'both'; expected one of 'published', 'rel"),
        ({"eeg.encoder": "nice-sa", "eeg.channel_dropout": 1.0}, r"eeg.channel_dropout is 1.0; expected a share"),
        ({"eeg.encoder": "eeg-channelnet", "eeg.blocks": -1}, "eeg.blocks is -1; expected at least 0"),
        ({"eeg.encoder": "simple-conv", "eeg.dropout_radius": -0.1}, "eeg.dropout_radius is -0.1; expected at least 0"),
        ({"eeg.subjects": "token"}, r"'token', but 'palazzo-gru' has no tokens \(only atm-s has\); use 'layer'"),
        ({"loss.temperature": 0.1}, r"'triplet' has no such setting \(only info_nce, siglip\)"),
        ({"optim.lr": -1.0}, "optim.lr is -1.0; expected above 0"),
        ({"optim.lr": float("nan")}, "optim.lr is nan; expected a finite number"),
        ({"train.batch_size": True}, "train.batch_size is True; expected a value of type int"),
        ({"train.batch_size": 1}, "at least 2"),
        ({"eeg.embed_dim": 64}, "eeg.embed_dim is 64 and image.embed_dim is 128"),
        ({"data.split": "leave-subject-out"}, "needs data.held_out"),
        ({"data.held_out": "sub-01"}, "takes no data.held_out"),
        ({"data.val_fraction": 0.6, "data.test_fraction": 0.4}, "less than 1"),
        ({"data.subjects": "sub-01"}, "expected a list of names"),
        ({"data.window_s": ["a", "b"]}, "expected a list of numbers"),
        ({"data.window_s": [0.5, 0.1]}, r"data.window_s is \(0.5, 0.1\); expected two numbers in order"),
        ({"data.window_s": [0.5]}, "expected two numbers in order"),
        ({"data.repetitions": -1}, "data.repetitions is -1; expected at least 0"),
        ({"data.split": "leave-session-out"}, "needs data.held_out"),
        ({"data.split": "time-purged"}, "needs data.purge_s"),
        ({"data.purge_s": -0.1}, "data.purge_s is -0.1; expected at least 0"),
        ({"image.weights": "imagenet"}, "'small' has no such weights"),
        ({"data.band_hz": [8, 4]}, r"data.band_hz is \(8.0, 4.0\); expected two numbers in order"),
        ({"data.band_hz": [-1, 4]}, "expected frequencies from 0 Hz on"),
        ({"data.control": "chaos"}, "data.control is 'chaos'; expected one of 'shuffled-pairs'"),
        ({"image.layer": "last"}, "image.layer is 'last', but only frozen features have it; set image.frozen"),
        ({"image.projector": "none"}, "image.projector is 'none', but only frozen features have it"),
        ({"image.encoder": "timm", "image.model": "x", "image.frozen": False}, "'timm' cannot be trained here"),
        ({"image.encoder": "timm"}, "the image encoder 'timm' needs image.model; got None"),
        ({"image.model": "x"}, "the image encoder 'small' has no image.model; got 'x'"),
        ({"image.encoder": "file"}, "the image encoder 'file' needs image.features"),
        ({"image.encoder": "random-codebook", "image.layer": "last"}, "'random-codebook' runs no network"),
        ({"image.encoder": "random-codebook", "image.size_px": 64}, "leave image.size_px and image.weights out"),
        ({"image.frozen": True, "image.foveal": 0.5}, "there is no blur; set image.blur_px"),
        ({"image.frozen": True, "image.blur_px": -1.0}, "image.blur_px is -1.0; expected at least 0"),
        ({"image.frozen": True, "data.crops": "ten"}, "frozen features are those of the central crop"),
        ({"loss.scale": "raw"}, "loss.scale is set to 'raw', but 'triplet' has no such setting"),
        ({"loss.text_weight": 0.01}, "there is no text; set image.text"),
        ({"loss.text_weight": 1.0}, r"loss.text_weight is 1.0; expected a share in \[0, 1\)"),
        ({"loss.negatives": "semi-hard"}, "it needs a margin above 0, set loss.margin"),
        ({"data.labelled": 0.0}, r"data.labelled is 0.0; expected a share in \(0, 1\]"),
        ({"loss.mse_weight": -1.0}, "loss.mse_weight is -1.0; expected at least 0"),
        ({"loss.name": "eeg-classes", "image.encoder": "resnet18"}, "trains no image encoder; leave out every image"),
        ({"loss.name": "image-classes", "eeg.encoder": "tsconv"}, "trains no EEG encoder; leave out every eeg"),
        ({"loss.name": "eeg-classes", "loss.margin": 0.1}, "'eeg-classes' has no such setting"),
        ({"loss.name": "eeg-classes", "train.metric": "val/top1"}, "retrieves nothing; use 'val/accuracy'"),
        ({"train.metric": "val/accuracy"}, "'val/accuracy' is a classifier's; use 'val/class_top1'"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(overrides, message):
    with pytest.raises(InputError, match=message):
        RunConfig().with_overrides(overrides)


@pytest.mark.parametrize("cls", [DataConfig, EegConfig, ImageConfig, LossConfig, OptimConfig, TrainConfig, SweepConfig])
def test_every_field_is_documented(cls):
    (definition,) = ast.parse(inspect.getsource(cls)).body
    assert isinstance(definition, ast.ClassDef)
    body = definition.body
    documented = {
        before.target.id
        for before, after in itertools.pairwise(body)
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name) and isinstance(after, ast.Expr)
    }
    assert documented == {field.name for field in dataclasses.fields(cls)}


def test_a_fingerprint_changes_with_results_and_not_with_speed():
    config = RunConfig()
    same = [{"data.residency": "stream"}, {"loss.margin": 0.0}, {"eeg.hidden": 256}]
    other = [{"seed": 1}, {"loss.margin": 0.1}, {"data.split_seed": 1}, {"train.max_passes": 3}]
    assert {config.with_overrides(overrides).fingerprint() for overrides in same} == {config.fingerprint()}
    assert len({config.with_overrides(overrides).fingerprint() for overrides in other} | {config.fingerprint()}) == 5


def test_resolving_fills_in_what_was_published():
    flat = RunConfig().with_overrides({"image.encoder": "inception_v3"}).flat()
    assert flat["image.size_px"] == 299
    assert (flat["eeg.hidden"], flat["eeg.channels"], flat["loss.margin"]) == (256, "shared", 0.0)
    assert "eeg.dropout" not in flat


def test_every_encoder_has_its_published_settings_and_only_those_it_names():
    assert set(EEG_DEFAULTS) == set(get_args(EegEncoderName))
    names: Any = EEG_DEFAULTS
    for name, defaults in names.items():
        resolved = EegConfig(encoder=name).resolved()
        filled = {f.name for f in dataclasses.fields(resolved) if getattr(resolved, f.name) is not None}
        assert filled == {"encoder", "embed_dim", *defaults}


def test_a_sweep_needs_at_least_one_trial():
    with pytest.raises(InputError, match="trials is 0; expected at least 1"):
        SweepConfig(trials=0)


def test_trials_have_a_third_of_their_passes_before_they_can_be_stopped():
    assert [SweepConfig().first_stop(passes) for passes in (1, 2, 3, 12, 27, 100)] == [1, 1, 1, 4, 9, 34]
    assert SweepConfig(min_passes=5).first_stop(27) == 5
    assert SweepConfig(min_passes=5).first_stop(2) == 2
    with pytest.raises(InputError, match="min_passes is 0; expected at least 1"):
        SweepConfig(min_passes=0)


@pytest.mark.parametrize("name", ["memory_gb_per_trial", "trial_hours", "stall_minutes"])
def test_a_limit_of_a_trial_is_above_zero_or_none(name):
    nothing: dict[str, Any] = {name: 0.0}
    with pytest.raises(InputError, match=f"{name} is 0.0; expected above 0"):
        SweepConfig(**nothing)
    unlimited: dict[str, Any] = {name: None}
    assert getattr(SweepConfig(**unlimited), name) is None


def test_every_place_has_what_a_trial_may_hold():
    assert set(PLACES) == set(get_args(Place))
    for workers, cpus, gpus in PLACES.values():
        assert SweepConfig(workers_per_trial=workers, cpus_per_trial=cpus, gpus_per_trial=gpus)
        assert workers == 1 or gpus == 1, "workers do not share a GPU"


def test_memory_is_reserved_for_trials_of_one_process():
    with pytest.raises(InputError, match="trials with one process each; with workers_per_trial 2 leave it out"):
        SweepConfig(memory_gb_per_trial=4.0, workers_per_trial=2)
    with pytest.raises(InputError, match="trials with one process each; with together 3 leave it out"):
        SweepConfig(memory_gb_per_trial=4.0, together=3)


def test_trials_share_a_gpu_or_need_several_not_both():
    with pytest.raises(InputError, match="together 4 is for trials that share a GPU, workers_per_trial 2"):
        SweepConfig(together=4, workers_per_trial=2)


@pytest.mark.parametrize(
    ("overrides", "crops"),
    [({}, "ten"), ({"image.frozen": True}, "centre"), ({"loss.name": "eeg-classes"}, "centre")],
)
def test_views_follow_from_what_is_trained(overrides, crops):
    assert RunConfig().with_overrides(overrides).resolved().data.crops == crops


@pytest.mark.parametrize(("name", "absent"), [("eeg-classes", "image."), ("image-classes", "eeg."), ("triplet", "-")])
def test_an_encoder_that_is_not_trained_is_not_listed(name, absent):
    flat = RunConfig().with_overrides({"loss.name": name}).flat()
    assert not [path for path in flat if path.startswith(absent)]
    assert flat["train.metric"] == ("val/top1" if name == "triplet" else "val/accuracy")


@pytest.mark.parametrize("name", ["eeg-classes", "image-classes"])
def test_one_encoder_alone_has_an_embedding_of_its_own_size(name):
    own = {"eeg-classes": "eeg", "image-classes": "image"}[name]
    config = RunConfig().with_overrides({"loss.name": name, f"{own}.embed_dim": 32})
    assert RunConfig.from_dict(config.resolved().to_dict()).fingerprint() == config.fingerprint()
