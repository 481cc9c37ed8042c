"""Trainings that take their steps together are what they are alone: weights, metrics, checkpoints, interruptions."""

import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eegvision import checkpoint, together
from eegvision import train as train_loop
from eegvision.stacked import ENCODERS, Request, Stack, family
from eegvision.stream import Store
from eegvision.together import Together
from eegvision.train import TrainingDiverged, fit, train_step
from planted import (
    CODEBOOK,
    CONFIG,
    FEATURES,
    N_TIMES,
    Interrupted,
    batches,
    built,
    one_thread,  # noqa: F401
    planted,
    run,
    stop_after,
)

FROZEN = CONFIG.with_overrides(
    CODEBOOK | {"eeg.dropout": 0.3, "optim.lr": 0.003, "train.max_passes": 3, "loss.learn_temperature": True}
)
# Differ in all that members of a family may differ in.
OTHERS = (
    {},
    {"optim.lr": 0.01},
    {"seed": 11, "optim.schedule": "cosine", "optim.warmup": 0.2},
    {"loss.temperature": 0.5, "optim.weight_decay": 0.1, "optim.beta1": 0.8},
    {"optim.clip_norm": 0.05, "loss.direction": "eeg-to-image", "loss.mse_weight": 0.3},
)


def meet(folder: Path, configs, *, room=None, begin_s=None, fits=fit, store=None) -> list:
    """Train each configuration in a thread of its own; return results or errors."""
    room = room or Together(len(configs))
    results: list = [None] * len(configs)

    def train(number: int) -> None:
        config = configs[number]
        try:
            with room.place(config) as place:
                with room.one_at_a_time:
                    model = built(config, n_times=(store or planted()).manifest.n_times)
                own, val = batches(config, store or planted())
                results[number] = fits(
                    config, model, own, val, device="cpu", folder=folder / str(number),
                    report=lambda _: place.away(lambda: None), take_step=place.step,
                )  # fmt: skip
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=train, args=[number]) for number in range(len(configs))]
    for number, thread in enumerate(threads):
        thread.start()
        if begin_s:
            thread.join(begin_s[number])
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    return results


def embeddings(folder: Path, config, store) -> tuple[torch.Tensor, torch.Tensor]:
    """Embed a few segments and pictures with the newest checkpoint of a training."""
    path = checkpoint.latest(folder / "last")
    assert path is not None
    model = built(config, n_times=store.manifest.n_times)
    model.load_state_dict(checkpoint.load(path)[0]["model"])
    model.train()  # statistics of the batch, see `assert_alike`
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout | torch.nn.Dropout2d):
            layer.p = 0.0
    assert store.eeg_NCT is not None
    with torch.no_grad():
        return model.encode_eeg(torch.from_numpy(store.eeg_NCT[:40])), model.encode_image(torch.from_numpy(FEATURES))


def assert_alike(folder: Path, alone: Path, result, expected, config, store) -> None:
    """Compare a training with the same one alone.

    Of a bias before a BatchNorm the gradient is rounding, which Adam makes as large a step as any other. It cancels
    while statistics are those of the batch; running means follow it late, hence the wider bounds of validation.
    """
    assert not isinstance(result, BaseException), result
    assert len(result.history) == len(expected.history)
    for mine, theirs in zip(result.history, expected.history, strict=True):
        assert mine["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-4)
        assert mine["train/grad_norm"] == pytest.approx(theirs["train/grad_norm"], rel=2e-3)
        assert mine["val/loss"] == pytest.approx(theirs["val/loss"], rel=3e-2)
        assert (mine["train/lr"], mine["train/bad_steps"]) == (theirs["train/lr"], theirs["train/bad_steps"])
    for mine, theirs in zip(embeddings(folder, config, store), embeddings(alone, config, store), strict=True):
        assert (mine - theirs).abs().max() < 1e-2 * theirs.abs().max()


LEAST = {"nice-deep": 160, "nice-eegnet": 100}  # samples of a segment, where N_TIMES is too short


def long(n_times: int) -> Store:
    """Return `planted` with segments that repeat themselves until they have so many samples."""
    store = planted()
    assert store.eeg_NCT is not None
    eeg_NCT = np.tile(store.eeg_NCT, -(-n_times // N_TIMES))[..., :n_times]
    manifest = dataclasses.replace(store.manifest, n_times=n_times)
    cut = dataclasses.replace(store.cut, stop=n_times)
    return dataclasses.replace(store, eeg_NCT=eeg_NCT, manifest=manifest, cut=cut)


def of(encoder: str, other=None):
    """Return FROZEN with another encoder, of the size it has by itself."""
    size = {} if encoder == "tsconv" else {"eeg.filters": None}
    return FROZEN.with_overrides({"eeg.encoder": encoder} | size | (other or {}))


def test_each_of_several_is_what_it_is_alone(tmp_path):
    store, configs = planted(), [FROZEN.with_overrides(other) for other in OTHERS]
    assert len({family(config) for config in configs}) == 1
    room = Together(len(configs))
    results = meet(tmp_path / "together", configs, room=room, store=store)
    assert sorted(room.sizes) == [1, 4]  # on a CPU those of one seed
    for number, (config, result) in enumerate(zip(configs, results, strict=True)):
        alone = tmp_path / "alone" / str(number)
        expected = run(alone, config, store=store, model=built(config, n_times=store.manifest.n_times))
        assert_alike(tmp_path / "together" / str(number), alone, result, expected, config, store)


def assert_one_step_alike(folder: Path, configs, store: Store, of_gradient: float = 1e-5) -> None:
    """Compare loss, gradient (in Adam's first moment) and running statistics with those of `train_step`."""
    assert len({family(config) for config in configs}) == 1

    def started(config) -> Request:
        model = built(config, n_times=store.manifest.n_times)
        state = train_loop._start(config, model, torch.device("cpu"), folder)
        batch = next(iter(batches(config, store)[0].passes(1)))
        return Request(config=config, state=state, batch=batch, number=1, index=0, n_steps=4, wish=0)

    configs = [config.resolved() for config in configs]
    together = [started(config) for config in configs]
    for step, mine, theirs in zip(Stack(together).step(together), together, map(started, configs), strict=True):
        alone = train_step(theirs.config, theirs.state, theirs.batch, number=1, index=0, n_steps=4)
        assert step.loss == pytest.approx(alone.loss, rel=1e-5)
        assert step.grad_norm == pytest.approx(alone.grad_norm, rel=of_gradient)
        means = [
            torch.cat([own["exp_avg"].flatten() for own in request.state.optimiser.state.values()])
            for request in (mine, theirs)
        ]
        assert (means[0] - means[1]).abs().max() < of_gradient * means[1].abs().max()
        for name, buffer in theirs.state.model.named_buffers():
            torch.testing.assert_close(mine.state.model.get_buffer(name), buffer, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("is_shared", [True, False])
def test_one_step_of_every_encoder_is_that_alone_with_the_same_draws(tmp_path, encoder, is_shared):
    configs = [of(encoder, {} if is_shared else {"seed": seed}) for seed in range(3)]
    # Of two values that differ by rounding either may be the maximum of its window, and gets the gradient.
    of_gradient = 5e-2 if encoder == "nice-deep" else 1e-5
    assert_one_step_alike(tmp_path, configs, long(LEAST.get(encoder, N_TIMES)), of_gradient)


@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize(
    "losses",
    [
        [{"loss.name": "siglip"}, {"loss.name": "siglip", "loss.temperature": 0.3}],
        [{"loss.name": "triplet"}, {"loss.name": "triplet", "loss.negatives": "semi-hard", "loss.margin": 0.1}],
        [{"loss.mse_weight": 0.3}, {"loss.centre_weight": 0.2}, {"loss.duplicates": "negatives"}, {}],
        [{"loss.text_weight": 0.1, "image.text": "texts.npy"}, {"loss.direction": "both", "image.text": "texts.npy"}],
    ],
    ids=["with a bias", "that draw", "of several terms", "with texts"],
)
def test_one_step_of_every_loss_is_that_alone(tmp_path, losses, is_shared):
    plain = {"loss.learn_temperature": None} if losses[0].get("loss.name") == "triplet" else {}
    seeds = [{} if is_shared else {"seed": seed} for seed in range(len(losses))]
    configs = [FROZEN.with_overrides(plain | loss | seed) for loss, seed in zip(losses, seeds, strict=True)]
    assert_one_step_alike(tmp_path, configs, planted())


def test_those_of_other_seeds_are_stacked_too(tmp_path, monkeypatch):
    """On a GPU; here a stack of five that see different rows, taken by hand."""
    configs = [FROZEN.with_overrides(other | {"train.max_passes": 1}) for other in OTHERS]
    monkeypatch.setattr(together, "_seen_alike", lambda _: None)
    room = Together(len(configs))
    results = meet(tmp_path / "together", configs, room=room)
    assert room.sizes == [5]
    for number, (config, result) in enumerate(zip(configs, results, strict=True)):
        alone = tmp_path / "alone" / str(number)
        assert_alike(tmp_path / "together" / str(number), alone, result, run(alone, config), config, planted())


def test_a_learned_scale_stays_below_its_limit(tmp_path):
    config = FROZEN.with_overrides({"loss.temperature": 0.0101, "optim.lr": 0.05, "train.max_passes": 2})
    results = meet(tmp_path / "together", [config, config])
    expected = run(tmp_path / "alone", config)
    for number, result in enumerate(results):
        folder = tmp_path / "together" / str(number)
        assert result.history[0]["train/loss"] == pytest.approx(expected.history[0]["train/loss"], rel=1e-3)
        path = checkpoint.latest(folder / "last")
        assert path is not None
        assert checkpoint.load(path)[0]["model"]["log_scale"] < np.log(100) + 0.06  # one step beyond at the most


def test_one_that_diverges_ends_alone_and_the_others_do_not_notice(tmp_path):
    wild = FROZEN.with_overrides({"optim.lr": 1e30, "train.max_bad_steps": 2})
    first, second, third = meet(tmp_path / "together", [FROZEN, wild, FROZEN.with_overrides({"optim.lr": 0.01})])
    assert isinstance(second, TrainingDiverged)
    alone = tmp_path / "alone"
    assert_alike(tmp_path / "together" / "0", alone, first, run(alone, FROZEN), FROZEN, planted())
    assert third.passes == 3


def test_a_bad_step_is_skipped_for_one_and_taken_for_the_others(tmp_path):
    states, requests = [], []
    for number in range(3):
        state = train_loop._start(FROZEN.resolved(), built(FROZEN), torch.device("cpu"), tmp_path)
        states.append(state)
        batch = next(iter(batches(FROZEN, planted())[0].passes(1)))
        if number == 1:
            batch = dataclasses.replace(batch, eeg_BCT=torch.full_like(batch.eeg_BCT, torch.inf))
        requests.append(
            Request(config=FROZEN.resolved(), state=state, batch=batch, number=1 + number, index=0, n_steps=4, wish=0)
        )  # of different passes, so that each has a batch of its own
    before = {name: tensor.clone() for name, tensor in states[1].model.state_dict().items()}
    steps = Stack(requests).step(requests)
    assert [step.is_bad for step in steps] == [False, True, False]
    assert [state.bad_in_a_row for state in states] == [0, 1, 0]
    for name, tensor in states[1].model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not torch.equal(states[0].model.state_dict()["log_scale"], before["log_scale"])
    assert all(state["step"] == 0 for state in states[1].optimiser.state.values())


def test_who_comes_later_begins_with_a_pass_of_the_others_and_is_what_it_is_alone(tmp_path):
    has_company = threading.Event()

    def waiting(config, model, train, val, *, report, folder, **more):
        """Keep the first training at the end of its first pass until the second is there."""

        def hold(done) -> None:
            assert has_company.wait(60)
            report(done)

        if folder.name == "1":
            has_company.set()
        return fit(config, model, train, val, report=hold, folder=folder, **more)

    configs = [FROZEN.with_overrides({"train.max_passes": 4}), FROZEN]
    results = meet(tmp_path / "together", configs, room=Together(2, patience_s=0.2), begin_s=(2, 0), fits=waiting)
    for number, (config, result) in enumerate(zip(configs, results, strict=True)):
        alone = tmp_path / "alone" / str(number)
        assert_alike(tmp_path / "together" / str(number), alone, result, run(alone, config), config, planted())


def test_an_interrupted_training_goes_on_together_or_alone(tmp_path):
    """Its checkpoint is an ordinary one: begun together it ends alone, begun alone it ends together."""
    expected = run(tmp_path / "whole", FROZEN)

    def cut(*parts, **more):
        return fit(*parts, **(more | {"report": stop_after(1)}))

    results = meet(tmp_path / "together", [FROZEN, FROZEN], fits=cut)
    assert all(isinstance(result, Interrupted) for result in results)
    alone = run(tmp_path / "together" / "0", FROZEN)
    assert_alike(tmp_path / "together" / "0", tmp_path / "whole", alone, expected, FROZEN, planted())
    again = meet(tmp_path / "together", [FROZEN, FROZEN])[1]
    assert_alike(tmp_path / "together" / "1", tmp_path / "whole", again, expected, FROZEN, planted())


def test_nobody_waits_for_one_that_waits_for_an_answer(tmp_path):
    answer = threading.Event()
    room = Together(2, patience_s=0.1)
    results: list[Any] = [None, None]

    def wait() -> None:
        assert answer.wait(60)

    def train(number: int) -> None:
        with room.place(FROZEN) as place:
            with room.one_at_a_time:
                model = built(FROZEN)
            own, val = batches(FROZEN, planted())
            results[number] = fit(
                FROZEN, model, own, val, device="cpu", folder=tmp_path / str(number), take_step=place.step,
                report=lambda _: place.away(wait if number else lambda: None),
            )  # fmt: skip

    threads = [threading.Thread(target=train, args=[number]) for number in range(2)]
    for thread in threads:
        thread.start()
    threads[0].join(60)
    assert results[0] is not None
    assert results[1] is None
    answer.set()
    threads[1].join(60)
    assert results[1] is not None
    assert results[1].history[-1]["train/loss"] == pytest.approx(results[0].history[-1]["train/loss"], rel=1e-5)


def test_what_cannot_be_stacked_trains_alone_in_turn(tmp_path):
    config = FROZEN.with_overrides({"eeg.encoder": "palazzo-gru", "eeg.filters": None, "eeg.dropout": None})
    assert family(config) is None
    assert family(CONFIG) is None  # its image encoder is trained
    room = Together(2)
    results = meet(tmp_path / "together", [config, config], room=room)
    assert room.sizes == []
    expected = run(tmp_path / "alone", config)
    for result in results:
        assert [m["train/loss"] for m in result.history] == [m["train/loss"] for m in expected.history]


def test_one_whose_batches_come_in_parts_takes_its_steps_alone_and_nobody_waits_for_it(tmp_path):
    (tmp_path / "together" / "0").mkdir(parents=True)
    (tmp_path / "together" / "0" / "parts.json").write_text('{"parts": 2, "attempt": 1}')
    room = Together(2, patience_s=0.1)
    results = meet(tmp_path / "together", [FROZEN, FROZEN], room=room)
    assert [result.passes for result in results] == [3, 3]
    assert room.sizes == [1]
    alone = tmp_path / "alone"
    assert_alike(tmp_path / "together" / "1", alone, results[1], run(alone, FROZEN), FROZEN, planted())
