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
    DataConfig,
    EegConfig,
    EegEncoderName,
    ImageConfig,
    LossConfig,
    OptimConfig,
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
        ({"data.window_s": [0.5, 0.1]}, r"data.window_s is \(0.5, 0.1\); expected two times in order"),
        ({"data.window_s": [0.5]}, "expected two times in order"),
        ({"data.repetitions": -1}, "data.repetitions is -1; expected at least 0"),
        ({"data.split": "leave-session-out"}, "needs data.held_out"),
        ({"data.split": "time-purged"}, "needs data.purge_s"),
        ({"data.purge_s": -0.1}, "data.purge_s is -0.1; expected at least 0"),
        ({"image.weights": "imagenet"}, "'small' has no such weights"),
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
