"""EEG encoders from braindecode, an optional package that is imported only when one of them is asked for."""

from __future__ import annotations

import importlib
import logging
import warnings
from types import ModuleType

import torch
from torch import nn

from eegvision.config import EegConfig
from eegvision.encoders.bounds import require_length, require_montage, require_segments
from eegvision.vocab import InputError

_log = logging.getLogger(__name__)

_INSTALL = "pip install 'braindecode>=1.8,<2'"

# Class, what its dropout is called, and the least channels and samples it can be built for.
_NETWORKS: dict[str, tuple[str, tuple[str, ...], int, int]] = {
    "braindecode-eegnet": ("EEGNet", ("drop_prob",), 1, 32),
    "braindecode-shallow": ("ShallowFBCSPNet", ("drop_prob",), 2, 99),
    "braindecode-deep4": ("Deep4Net", ("drop_prob",), 2, 12),
    "braindecode-conformer": ("EEGConformer", ("drop_prob", "att_drop_prob"), 1, 99),
}


class Zoo(nn.Module):
    """A network of braindecode with its published settings, whose last layer gives D values in place of class scores.

    Deep4 is made for 441 samples or more; for fewer braindecode shortens all its kernels and poolings in proportion,
    which is logged. All are bound to the length they were built for.

    Source: braindecode 1.8 (BSD-3): EEGNet (Lawhern et al. 2018), ShallowFBCSPNet and Deep4Net (Schirrmeister et al.
    2017), EEGConformer (Song et al. 2023, six layers, ten heads).
    Shapes: [B, C, T] -> [B, D].
    Raises:
        InputError: braindecode is missing or does not import, C or T is too small, or differs from construction.
    """

    def __init__(self, config: EegConfig, n_chans: int, n_times: int, sfreq_hz: float) -> None:
        super().__init__()
        self.name, self.n_chans, self.n_times = config.encoder, n_chans, n_times
        class_name, dropouts, least_chans, least_times = _NETWORKS[config.encoder]
        require_montage(self.name, least_chans, n_chans, "choose 'braindecode-eegnet'")
        require_length(self.name, least_times, n_times, sfreq_hz)
        network = getattr(_models(self.name), class_name)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            self.net: nn.Module = network(
                n_chans=n_chans,
                n_times=n_times,
                sfreq=sfreq_hz,
                n_outputs=config.embed_dim,
                **dict.fromkeys(dropouts, config.dropout),
            )
        for warning in said:
            _log.warning("%s: %s", self.name, warning.message)

    def forward(self, eeg_BCT: torch.Tensor) -> torch.Tensor:
        require_segments(eeg_BCT, self.n_chans, self.n_times, self.name)
        return self.net(eeg_BCT)


def _models(name: str) -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the packages it imports, about which nobody here can do anything
            return importlib.import_module("braindecode.models")
    # torchaudio, which it imports, raises RuntimeError or OSError where it does not fit torch.
    except (ImportError, RuntimeError, OSError) as error:
        raise InputError(
            f"eeg.encoder {name!r} comes from braindecode, which cannot be imported here ({error}); install it with "
            f"{_INSTALL} (it needs torch below 2.15), or choose an encoder of our own, for example 'nice-eegnet'"
        ) from error
