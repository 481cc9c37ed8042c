"""EEG encoders by name, [B, C, T] -> [B, D].

Each takes segments as the stream presents them; the z-score per segment and channel that most papers start from
happens there (`data.normalise`), not here. Axes: B batch, C channels, T samples, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from eegvision.config import EegConfig
from eegvision.encoders import flattened
from eegvision.encoders.palazzo import Palazzo
from eegvision.encoders.perceivelab import ChannelNet, LastState
from eegvision.encoders.simple_conv import Positions, SimpleConvTimeAgg
from eegvision.encoders.subjects import SubjectLayer
from eegvision.encoders.zoo import Zoo
from eegvision.vocab import InputError


def build_eeg_encoder(
    config: EegConfig,
    n_chans: int,
    n_times: int,
    sfreq_hz: float,
    *,
    positions_m: Positions = (),
    n_subjects: int = 0,
) -> nn.Module:
    """Return the encoder named by `config.encoder`, random weights, for segments of this shape and rate.

    `positions_m` are the channels' head coordinates in metres (x right, y front, z up), in their order: `simple-conv`
    needs them. `n_subjects` is the number of subjects in training: `config.subjects` needs it, and the encoder then
    also takes the subject of each segment, as a row of its table, [B, C, T], [B] -> [B, D] (see `subjects.rows_of`).

    Raises:
        InputError: segments have fewer samples or channels than the encoder needs, it needs positions or subjects and
            there are none, or it comes from a package that is not installed.
    """
    assert n_chans >= 1, n_chans
    assert n_times >= 1, n_times
    config = config.resolved()
    if config.subjects is not None and n_subjects == 0:
        raise InputError(
            f"eeg.subjects is {config.subjects!r}, but whose segments these are is not known; remove that setting, or "
            "train on a data set that names its subjects"
        )
    if config.encoder == "simple-conv":
        encoder: nn.Module = SimpleConvTimeAgg(config, n_chans, n_times, positions_m)
    elif config.subjects == "token":
        encoder = flattened.build_tsconv(config, n_chans, n_times, sfreq_hz, n_subjects)
    else:
        encoder = _ENCODERS[config.encoder](config, n_chans, n_times, sfreq_hz)
    return SubjectLayer(encoder, n_chans, n_subjects) if config.subjects == "layer" else encoder


_ENCODERS: dict[str, Callable[[EegConfig, int, int, float], nn.Module]] = {
    "palazzo-lstm": lambda config, n_chans, _n_times, _sfreq_hz: Palazzo(config, n_chans, nn.LSTM),
    "palazzo-gru": lambda config, n_chans, _n_times, _sfreq_hz: Palazzo(config, n_chans, nn.GRU),
    "tsconv": flattened.build_tsconv,
    "nice-sa": flattened.build_tsconv,
    "nice-ga": flattened.build_tsconv,
    "nice-shallow": flattened.build_shallow,
    "nice-deep": flattened.build_deep,
    "nice-eegnet": flattened.build_eegnet,
    "atm-s": flattened.build_tsconv,
    "eeg-project": flattened.build_project,
    "eeg-channelnet": ChannelNet,
    "perceivelab-lstm": lambda config, n_chans, _n_times, _sfreq_hz: LastState(config, n_chans),
    "braindecode-eegnet": Zoo,
    "braindecode-shallow": Zoo,
    "braindecode-deep4": Zoo,
    "braindecode-conformer": Zoo,
}
