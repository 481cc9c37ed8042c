"""eegvision.inspection.channels over Ray: the same tables as in one process."""

import csv
import shutil

import numpy as np

from eegvision import cluster, fanout
from eegvision.inspection import channel_tables, channels
from eegvision.inspection.channel_settings import ChannelSettings
from eegvision.inspection.channels import run_channels


def test_tables_do_not_depend_on_workers(ray_local, tiny_run, monkeypatch):
    assert ray_local.is_initialized()
    assert tiny_run.name == "tiny-run"
    monkeypatch.setattr(channels, "_CHUNK", 10)
    monkeypatch.setattr(channel_tables, "_draw", lambda *_: None)
    settings = ChannelSettings(draws=2, views=False, intervals_s=((0.1, 0.2),))

    def tables() -> tuple[list[list[str]], np.ndarray]:
        folder = run_channels(
            "tiny-run", trial=None, side="val", settings=settings, cpus=1.0, gpus=0.0, say=lambda _: None
        )
        assert len(fanout.results(folder).keys) == 4
        with (folder / "importance.csv").open(newline="") as file:
            rows = list(csv.reader(file))
        shutil.rmtree(folder)
        names = [row[:5] for row in rows]
        return names, np.array([[float(cell or "nan") for cell in row[5:]] for row in rows[1:]])

    names, spread_NX = tables()
    monkeypatch.setattr(cluster, "is_connected", lambda: False)
    other_names, alone_NX = tables()
    assert names == other_names
    assert len({row[2] for row in names[1:]}) == 2
    np.testing.assert_allclose(spread_NX, alone_NX, atol=2e-5)
