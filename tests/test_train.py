"""eegvision.train: learning, arms, metrics by hand, resuming bit for bit, bad steps, and two processes equal to one.

Run as a program, this file is one of the two processes: `test_train.py RANK FOLDER`.
"""

import dataclasses
import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from eegvision import checkpoint
from eegvision import train as train_loop
from eegvision.config import RunConfig
from eegvision.encoders.joint import JointModel
from eegvision.losses import centre_mse, info_nce, pair_mse
from eegvision.optim import learning_rate
from eegvision.stream import Batches, Store
from eegvision.train import PassReport, Stopped, TrainingDiverged, fit
from eegvision.vocab import InputError, RunInUseError
from planted import (
    CODEBOOK,
    CONFIG,
    FEATURES,
    TEXTS,
    Interrupted,
    arm,
    assert_same_curves,
    assert_same_tensors,
    batches,
    built,
    one_thread,  # noqa: F401
    partly_labelled,
    planted,
    run,
    stop_after,
    stored,
    timeless,
    with_eeg,
)

# ---- learning and its record


@pytest.mark.parametrize("loss", ["triplet", "info_nce"])
def test_a_planted_signal_is_learned_and_generalises_to_new_images(tmp_path, loss):
    config = CONFIG.with_overrides(
        {"loss.name": loss, "train.max_passes": 16, "optim.lr": 5e-3, "optim.schedule": "cosine"}
    )
    result = run(tmp_path, config, store=planted(signal=3.0))
    losses = [metrics["train/loss"] for metrics in result.history]
    assert losses[-1] < 0.5 * losses[0]
    assert result.best_metrics["val/top1"] > 0.45  # chance 1/6: P(Binomial(24, 1/6) >= 11) < .001
    assert result.best_metrics["val/median_rank"] <= 2  # chance 3.5


@pytest.mark.parametrize("side", ["eeg", "image"])
def test_each_encoder_alone_learns_classes_that_differ(tmp_path, side):
    config = arm(side, {"train.max_passes": 16, "optim.lr": 5e-3, "optim.schedule": "cosine", "seed": 4})
    result = run(tmp_path, config, store=planted(signal=3.0, tint=0.9))
    assert result.history[-1]["train/loss"] < 0.5 * result.history[0]["train/loss"]
    # Chance 1/3. EEG: 24 segments, P(Binomial(24, 1/3) >= 17) < .0005. Images: 6, all of them right, P = .0014.
    assert result.best_metrics["val/accuracy"] >= (0.7 if side == "eeg" else 1.0)


def test_metrics_are_all_there_and_agree_with_each_other(tmp_path):
    reports = []
    result = run(tmp_path, report=reports.append)
    assert [done.number for done in reports] == [1, 2, 3, 4]
    assert [done.metrics for done in reports] == list(result.history)
    assert set(result.history[0]) == {
        "train/loss", "train/grad_norm", "train/lr", "train/bad_steps", "val/loss", "val/top1", "val/top5",
        "val/median_rank", "val/class_top1", "segments_per_s", "seconds",
    }  # fmt: skip
    top1 = [metrics["val/top1"] for metrics in result.history]
    assert result.best_pass == 1 + top1.index(max(top1))  # the first of equals
    assert result.best_metrics == result.history[result.best_pass - 1]
    assert [done.best for done in reports] == [score > max([-1, *top1[:n]]) for n, score in enumerate(top1)]
    assert [done.objective for done in reports] == [max(top1[: n + 1]) for n in range(4)]


def test_predictions_are_those_of_the_best_model(tmp_path):
    result = run(tmp_path)
    path = checkpoint.latest(tmp_path / "best")
    assert path is not None
    assert path.name == f"pass-{result.best_pass:06d}"
    model = built()
    model.load_state_dict(checkpoint.load(path)[0]["model"])
    model.eval()
    # Retrieval once more, the long way: 24 queries, 6 images, one dot product each.
    store = planted()
    assert store.eeg_NCT is not None
    val = batches(CONFIG, store)[1]
    pictures = dict(zip(range(16, 22), torch.cat([image_BX for image_BX, _ in val.images(99)]), strict=True))
    # The loss takes whole batches of 16 of the 24, in an order drawn from the seed.
    chosen = 64 + np.random.default_rng(CONFIG.seed).permutation(24)[:16]
    with torch.no_grad():
        gallery = {number: model.encode_image(picture[None])[0] for number, picture in pictures.items()}
        places, firsts = [], []
        for row in range(64, 88):
            query = model.encode_eeg(torch.tensor(store.eeg_NCT[row])[None])[0]
            order = sorted(gallery, key=lambda number, query=query: -float(query @ gallery[number]))
            places.append(1 + order.index(store.image_N[row]))
            firsts.append(order[0])
        eeg_BD = model.encode_eeg(torch.tensor(store.eeg_NCT[chosen]))
        image_BD = torch.stack([gallery[number] for number in store.image_N[chosen]])
        ids_B = torch.tensor(store.image_N[chosen])
        loss = info_nce(eeg_BD, image_BD, scale=model.log_scale.exp(), image_ids_B=ids_B)
    stored_arrays = np.load(path / "predictions.npz")
    assert stored_arrays["row_Q"].tolist() == list(range(64, 88))
    assert stored_arrays["rank_Q"].tolist() == places
    assert stored_arrays["image_id_Q"].tolist() == [f"img-{store.image_N[row]}" for row in range(64, 88)]
    assert stored_arrays["top_image_id_QK"].shape == (24, 6)
    assert stored_arrays["top_image_id_QK"][:, 0].tolist() == [f"img-{number}" for number in firsts]
    assert stored_arrays["top_label_QK"][:, 0].tolist() == [number % 3 for number in firsts]
    assert stored_arrays["label_Q"].tolist() == [store.image_N[row] % 3 for row in range(64, 88)]
    metrics = result.best_metrics
    assert metrics["val/loss"] == pytest.approx(float(loss), rel=1e-5)
    assert metrics["val/top1"] == np.mean(np.array(places) == 1)
    assert metrics["val/top5"] == np.mean(np.array(places) <= 5)
    assert metrics["val/median_rank"] == np.median(places)
    same_class = [number % 3 == store.label_N[row] for number, row in zip(firsts, range(64, 88), strict=True)]
    assert metrics["val/class_top1"] == pytest.approx(np.mean(same_class))


def test_validation_loss_has_all_terms_of_the_training_loss(tmp_path):
    config, store = CONFIG.with_overrides(LOSSES["everything"]), planted()
    result = run(tmp_path, config)
    path = checkpoint.latest(tmp_path / "best")
    assert path is not None
    model = JointModel.load(path)
    assert store.eeg_NCT is not None
    chosen = 64 + np.random.default_rng(config.seed).permutation(24)[:16]
    image_B, label_B = torch.tensor(store.image_N[chosen]), torch.tensor(store.label_N[chosen])
    text_BD = torch.nn.functional.normalize(torch.tensor(TEXTS[image_B]), dim=1)
    with torch.no_grad():
        eeg_BD, image_BD, scale, _ = model(torch.tensor(store.eeg_NCT[chosen]), torch.tensor(FEATURES[image_B]))
        with_images, with_texts = (
            info_nce(eeg_BD, target_BD, scale=scale, direction="eeg-to-image", image_ids_B=ids_B)
            for target_BD, ids_B in ((image_BD, image_B), (text_BD, label_B))  # one text per class
        )
        mse, centre = pair_mse(eeg_BD, image_BD), centre_mse(eeg_BD, image_BD, label_B)
    by_hand = 0.9 * with_images + 0.1 * with_texts + 0.3 * mse + 0.2 * centre
    assert result.best_metrics["val/loss"] == pytest.approx(float(by_hand), rel=1e-5)


def test_a_checkpoint_holds_what_is_needed_to_build_the_model_again(tmp_path):
    run(tmp_path)
    for side, groups in (("last", {"model", "optimiser"}), ("best", {"model"})):
        path = checkpoint.latest(tmp_path / side)
        assert path is not None
        tensors, state = checkpoint.load(path)
        assert set(tensors) == groups
        assert RunConfig.from_dict(state["config"]).fingerprint() == CONFIG.fingerprint()
        assert state["data"] == {
            "name": "planted",
            "fingerprint": "fingerprint of planted",
            "n_chans": 4,
            "n_times": 75,
            "sfreq_hz": 100.0,
            "channels": ["O1", "O2", "Oz", "Pz"],
            "classes": ["cat", "dog", "fish"],
            "positions_m": [],
            "subjects": [],
            "n_features": 0,
            "n_classes": 3,
            "split": "by-image",
            "split_notes": ["subjects are on all sides"],
        }
    assert sorted(path.name for path in (tmp_path / "last").iterdir()) == ["pass-000003", "pass-000004"]


def test_the_checkpoint_is_whole_when_the_pass_is_reported(tmp_path):
    def report(done: PassReport) -> None:
        path = checkpoint.latest(tmp_path / "last")
        assert path is not None
        assert path.name == f"pass-{done.number:06d}"

    run(tmp_path, report=report)


# ---- one encoder alone


def reloaded(folder: Path) -> tuple[JointModel, dict[str, np.ndarray]]:
    path = checkpoint.latest(folder / "best")
    assert path is not None
    return JointModel.load(path), dict(np.load(path / "predictions.npz"))


def test_an_eeg_arm_is_scored_over_segments_with_a_class(tmp_path):
    store = planted()
    store.label_N[64:70] = -1
    result = run(tmp_path, arm("eeg"), store=store)
    assert set(result.history[0]) == {
        "train/loss", "train/grad_norm", "train/lr", "train/bad_steps", "val/loss", "val/accuracy",
        "segments_per_s", "seconds",
    }  # fmt: skip
    model, found = reloaded(tmp_path)
    assert store.eeg_NCT is not None
    with torch.no_grad():
        logit_QK = model(torch.tensor(store.eeg_NCT[64:88]), None)
    assert set(found) == {"row_Q", "image_id_Q", "label_Q", "predicted_Q"}
    assert found["row_Q"].tolist() == list(range(64, 88))
    assert found["image_id_Q"].tolist() == [f"img-{image}" for image in store.image_N[64:88]]
    assert found["label_Q"].tolist() == [-1] * 6 + [image % 3 for image in store.image_N[70:88]]
    assert found["predicted_Q"].tolist() == logit_QK.argmax(1).tolist()
    known = slice(6, 24)
    assert result.best_metrics["val/accuracy"] == np.mean(found["predicted_Q"][known] == found["label_Q"][known])
    log_p_QK = torch.log_softmax(logit_QK, 1)
    own = [float(log_p_QK[q, label]) for q, label in enumerate(found["label_Q"].tolist()) if label >= 0]
    assert result.best_metrics["val/loss"] == pytest.approx(-np.mean(own), rel=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_an_image_arm_is_scored_over_distinct_images(tmp_path, frozen):
    config = arm("image", CODEBOOK if frozen else {})
    result = run(tmp_path, config)
    model, found = reloaded(tmp_path)
    assert found["row_Q"].tolist() == [64, 68, 72, 76, 80, 84]  # of four segments each, the first
    assert found["image_id_Q"].tolist() == [f"img-{image}" for image in range(16, 22)]
    assert found["label_Q"].tolist() == [image % 3 for image in range(16, 22)]
    image_MX, image_M = next(batches(config, planted())[1].images(6))
    assert image_M.tolist() == list(range(16, 22))
    with torch.no_grad():
        logit_QK = model(None, image_MX)
    assert found["predicted_Q"].tolist() == logit_QK.argmax(1).tolist()
    assert result.best_metrics["val/accuracy"] == np.mean(found["predicted_Q"] == found["label_Q"])


def test_an_arm_is_chosen_by_accuracy_and_goes_on_bit_for_bit(tmp_path):
    config = arm("eeg", {"eeg.dropout": 0.5})
    whole = run(tmp_path / "whole", config)
    accuracy = [metrics["val/accuracy"] for metrics in whole.history]
    assert whole.best_pass == 1 + accuracy.index(max(accuracy))
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", config, report=stop_after(2))
    parts = run(tmp_path / "parts", config)
    assert timeless(parts.history) == timeless(whole.history)
    assert_same_tensors(stored(tmp_path / "parts"), stored(tmp_path / "whole"))


def test_segments_without_a_class_teach_an_arm_nothing(tmp_path):
    # As if they were not in their batches. (A BatchNorm would see them all the same, so features are frozen here.)
    config = arm("image", CODEBOOK)
    store = planted()
    store.label_N[:64:2] = -1

    class Without(Batches):
        def passes(self, number, start_step=0):
            for batch in super().passes(number, start_step):
                keep = batch.label_B >= 0
                yield dataclasses.replace(batch, **{name: x[keep] for name, x in vars(batch).items() if x is not None})

    run(tmp_path / "with", config, store=store)
    train, val = batches(config, store)
    train.__class__ = Without
    fit(config, built(config), train, val, device="cpu", folder=tmp_path / "without", report=lambda _: None)
    for name, tensor in stored(tmp_path / "with")["model"].items():
        torch.testing.assert_close(stored(tmp_path / "without")["model"][name], tensor)


def test_a_batch_without_any_class_is_a_step_of_nothing(tmp_path):
    config = arm("eeg", {"train.max_passes": 1})
    store = planted()
    first = order_of_pass(CONFIG, 1)[0]
    store.label_N[first] = -1
    steps = []
    original = train_loop.train_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            train_loop, "train_step", lambda *args, **names: steps.append(original(*args, **names)) or steps[-1]
        )
        run(tmp_path, config, store=store)
    assert (steps[0].loss, steps[0].grad_norm, steps[0].is_bad) == (0.0, 0.0, False)
    assert all(step.loss > 0 for step in steps[1:])


def test_an_arm_needs_classes_on_both_sides(tmp_path):
    with pytest.raises(InputError, match="'eeg-classes' tells classes apart, but the training set has 0"):
        run(tmp_path, arm("eeg"), store=planted(labels=False))
    store = planted()
    store.label_N[:64] = 2
    with pytest.raises(InputError, match="'image-classes' tells classes apart, but the training set has 1"):
        run(tmp_path, arm("image"), store=store)
    store = planted()
    store.label_N[:64] %= 2
    store.label_N[64:88] = 2
    with pytest.raises(InputError, match=r"validation shows none of them; data.split is 'by-image'"):
        run(tmp_path, arm("eeg"), store=store)
    assert not list(tmp_path.iterdir())


def test_without_classes_there_is_no_class_score(tmp_path):
    result = run(tmp_path, store=planted(labels=False))
    assert "val/class_top1" not in result.best_metrics


def test_validation_loss_is_the_lowest_where_it_is_the_metric(tmp_path):
    config = CONFIG.with_overrides({"train.metric": "val/loss"})
    result = run(tmp_path, config)
    assert result.best_metrics["val/loss"] == min(metrics["val/loss"] for metrics in result.history)


def test_patience_ends_a_run_that_no_longer_improves(tmp_path):
    # A rate at which weights do not move: no pass is better than the first.
    config = CONFIG.with_overrides({"optim.lr": 1e-12, "train.patience": 2, "train.max_passes": 9})
    result = run(tmp_path, config)
    assert (result.best_pass, result.passes) == (1, 3)


# What is asserted is how CUDA behaves (kernels that add in any order, autocast's dtypes); no CPU can stand in for it.
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_a_resumed_run_goes_on_and_weights_stay_fp32(tmp_path, precision):
    config = CONFIG.with_overrides({"train.precision": precision})
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", config, device="cuda", report=stop_after(2))
    parts, whole = run(tmp_path / "parts", config, device="cuda"), run(tmp_path / "whole", config, device="cuda")
    for here, there in zip(whole.history, parts.history, strict=True):
        assert there["train/loss"] == pytest.approx(here["train/loss"], rel=0.05)
    assert {t.dtype for t in stored(tmp_path / "parts")["model"].values()} == {torch.float32, torch.int64}


# ---- the learning rate


def test_learning_rate_by_hand():
    optim = CONFIG.with_overrides({"optim.lr": 1.0, "optim.warmup": 0.4, "optim.schedule": "cosine"}).optim
    # 10 steps: 4 of warm-up, then half a cosine over steps 4..9.
    expected = [0.25, 0.5, 0.75, 1.0, *((1 + math.cos(math.pi * n / 5)) / 2 for n in range(6))]
    assert [learning_rate(optim, step, 10) for step in range(10)] == pytest.approx(expected)
    assert learning_rate(optim, 9, 10) == pytest.approx(0)
    constant = CONFIG.with_overrides({"optim.lr": 0.5}).optim
    assert [learning_rate(constant, step, 3) for step in range(3)] == [0.5] * 3
    assert learning_rate(dataclasses.replace(optim, warmup=0.0), 0, 1) == 1.0


def test_the_schedule_reaches_the_optimiser(tmp_path):
    config = CONFIG.with_overrides({"optim.schedule": "cosine"})
    rates = [metrics["train/lr"] for metrics in run(tmp_path, config).history]
    assert rates == pytest.approx([0.01 * (1 + math.cos(math.pi * step / 15)) / 2 for step in (3, 7, 11, 15)])


# ---- resuming


@pytest.mark.parametrize("stops", [(1,), (3,), (1, 2, 3)])
def test_an_interrupted_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, stops):
    # Everything that has a state or is random: dropout, running statistics, moments, schedule, random negatives, crops.
    config = CONFIG.with_overrides(
        {
            "loss.name": "triplet",
            "eeg.dropout": 0.5,
            "optim.name": "adamw",
            "optim.weight_decay": 0.1,
            "optim.schedule": "cosine",
            "optim.warmup": 0.2,
            "optim.clip_norm": 1.0,
            "data.crops": "ten",
        }
    )
    whole = run(tmp_path / "whole", config)
    for stop in stops:
        torch.manual_seed(stop)  # the interruption also takes the process's generators
        with pytest.raises(Interrupted):
            run(tmp_path / "parts", config, report=stop_after(stop))
    parts = run(tmp_path / "parts", config)
    assert timeless(parts.history) == timeless(whole.history)
    assert (parts.best_pass, parts.passes) == (whole.best_pass, whole.passes)
    for side in ("last", "best"):
        assert_same_tensors(stored(tmp_path / "parts", side), stored(tmp_path / "whole", side))
    first, second = (checkpoint.latest(tmp_path / name / "best") for name in ("whole", "parts"))
    assert first is not None
    assert second is not None
    assert (first / "predictions.npz").read_bytes() == (second / "predictions.npz").read_bytes()


def test_a_resumed_run_first_repeats_its_last_report(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, report=stop_after(2))
    reports = []
    result = run(tmp_path, report=reports.append)
    assert [done.number for done in reports] == [2, 3, 4]
    assert [done.metrics for done in reports] == list(result.history[1:])


def test_a_damaged_newest_checkpoint_costs_one_pass_and_changes_nothing(tmp_path, caplog):
    whole = run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", report=stop_after(3))
    (tmp_path / "parts" / "last" / "pass-000003" / "optimiser.safetensors").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        parts = run(tmp_path / "parts")
    assert "pass-000003/optimiser.safetensors has 0 bytes" in caplog.text
    assert timeless(parts.history) == timeless(whole.history)
    assert_same_tensors(stored(tmp_path / "parts"), stored(tmp_path / "whole"))
    assert_same_tensors(stored(tmp_path / "parts", "best"), stored(tmp_path / "whole", "best"))


def test_a_best_checkpoint_whose_pass_was_cut_short_is_dropped_and_made_again(tmp_path):
    config = CONFIG.with_overrides({"train.metric": "val/loss"})
    whole = run(tmp_path / "whole", config)
    best, folder = whole.best_pass, tmp_path / "parts"
    assert best > 1
    with pytest.raises(Interrupted):
        run(folder, config, report=stop_after(best))
    # As if the process had died after writing the best and before writing the last.
    (folder / "last" / f"pass-{best:06d}" / "manifest.json").unlink()
    with pytest.raises(Interrupted):
        run(folder, config, report=stop_after(best - 1))
    assert checkpoint.latest(folder / "best") < folder / "best" / f"pass-{best:06d}"
    parts = run(folder, config)
    assert timeless(parts.history) == timeless(whole.history)
    assert_same_tensors(stored(folder, "best"), stored(tmp_path / "whole", "best"))


def test_a_finished_run_returns_its_result_without_training(tmp_path):
    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if "attempts" not in path.parts}

    result = run(tmp_path)
    before = files()
    # Training on these segments would diverge at once.
    again = run(tmp_path, store=with_eeg(planted(), slice(None), math.nan))
    assert again == result
    assert files() == before


def test_a_folder_with_another_configuration_is_refused_naming_what_differs(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, report=stop_after(1))
    other = CONFIG.with_overrides({"optim.lr": 0.02, "loss.name": "siglip", "data.residency": "host"})
    with pytest.raises(RunInUseError) as caught:
        run(tmp_path, other)
    message = str(caught.value)
    assert "optim.lr is 0.01 there and 0.02 here" in message
    assert "loss.name is 'info_nce' there and 'siglip' here" in message
    assert "residency" not in message
    assert str(tmp_path) in message


def test_a_setting_that_changes_no_result_may_change_between_two_parts_of_a_run(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, report=stop_after(1))
    assert run(tmp_path, CONFIG.with_overrides({"data.residency": "host"})).passes == 4


def test_a_folder_with_other_data_is_refused_naming_both(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, report=stop_after(1))
    with pytest.raises(RunInUseError, match=r"data set is 'planted' .* there and 'other' .* here"):
        run(tmp_path, store=planted(name="other"))


# ---- bad steps


def order_of_pass(config: RunConfig, number: int) -> list[list[int]]:
    return [batch.row_B.tolist() for batch in batches(config, planted())[0].passes(number)]


def test_a_bad_step_is_skipped_and_counted_and_leaves_no_trace(tmp_path):
    # One segment of NaN spoils one step of each pass. Weights, moments and running statistics stay finite.
    result = run(tmp_path, store=with_eeg(planted(), 5, math.nan))
    assert [metrics["train/bad_steps"] for metrics in result.history] == [1.0] * 4
    assert all(math.isfinite(value) for metrics in result.history for value in metrics.values())
    for named in stored(tmp_path).values():
        assert all(tensor.isfinite().all() for tensor in named.values())


def test_a_skipped_step_is_as_if_its_batch_were_not_there(tmp_path):
    config = CONFIG.with_overrides({"train.max_passes": 1})
    place = next(n for n, rows in enumerate(order_of_pass(config, 1)) if 5 in rows)
    run(tmp_path / "bad", config, store=with_eeg(planted(), 5, math.inf))

    class Without(Batches):
        def passes(self, number, start_step=0):
            return (batch for n, batch in enumerate(super().passes(number, start_step)) if n != place)

    train, val = batches(config, planted())
    train.__class__ = Without
    fit(config, built(config), train, val, device="cpu", folder=tmp_path / "without", report=lambda _: None)
    bad, without = (stored(tmp_path / name) for name in ("bad", "without"))
    assert_same_tensors(bad, without)


def test_an_overflowing_gradient_is_a_bad_step_too(tmp_path):
    # Image embeddings of 1e20: the loss is finite, the squares in the norm of the gradient are not.
    config = CONFIG.with_overrides({"loss.name": "triplet", "train.max_bad_steps": 3})
    model = built(config)
    assert model.image is not None
    with torch.no_grad():
        list(model.image.parameters())[-2].mul_(1e20)
    with pytest.raises(TrainingDiverged, match=r"step 3: loss \d\.\d+e\+\d+, gradient norm inf"):
        run(tmp_path, config, model=model)


def test_too_many_bad_steps_in_a_row_end_the_run_naming_the_segments(tmp_path):
    config = CONFIG.with_overrides({"train.max_bad_steps": 6})
    with pytest.raises(TrainingDiverged) as caught:
        run(tmp_path, config, store=with_eeg(planted(), slice(0, 64), math.nan))
    # None of the first pass's four steps is good, so nothing of it can be reported either.
    assert "pass 1: none of its 4 steps" in str(caught.value)
    config = CONFIG.with_overrides({"train.max_bad_steps": 3})
    with pytest.raises(TrainingDiverged) as caught:
        run(tmp_path, config, store=with_eeg(planted(), slice(0, 64), math.nan))
    assert "pass 1, step 3: loss nan" in str(caught.value)
    assert ", ".join(f"seg-{row}" for row in order_of_pass(config, 1)[2]) + ". Lower" in str(caught.value)
    assert checkpoint.latest(tmp_path / "last") is None


def test_validation_data_that_are_not_finite_reach_no_metric_and_no_checkpoint(tmp_path):
    with pytest.raises(TrainingDiverged, match="validation set are not finite"):
        run(tmp_path, store=with_eeg(planted(), 70, math.nan))
    assert checkpoint.latest(tmp_path / "best") is None


def test_the_gradient_is_clipped_and_reported_unclipped(tmp_path):
    free = run(tmp_path / "free", CONFIG.with_overrides({"train.max_passes": 1}))
    model = built()
    run(tmp_path / "clipped", CONFIG.with_overrides({"train.max_passes": 1, "optim.clip_norm": 1e-3}), model=model)
    norm = torch.nn.utils.get_total_norm(
        [grad for parameter in model.parameters() if (grad := parameter.grad) is not None]
    )
    assert norm == pytest.approx(1e-3, rel=1e-3)
    assert free.history[0]["train/grad_norm"] > 0.01


# ---- refusals


def test_a_batch_larger_than_the_training_set_is_refused_with_both_numbers(tmp_path):
    with pytest.raises(InputError, match=r"65 .*64"):
        run(tmp_path, CONFIG.with_overrides({"train.batch_size": 65}))


def test_a_validation_set_of_one_image_is_refused(tmp_path):
    store = planted()
    store.split.rows["val"] = np.arange(64, 68)
    with pytest.raises(InputError, match=r"validation has 1 image.*data\.val_fraction"):
        run(tmp_path, store=store)


def test_selection_by_class_without_classes_is_refused(tmp_path):
    with pytest.raises(InputError, match="has no classes; choose 'val/top1'"):
        run(tmp_path, CONFIG.with_overrides({"train.metric": "val/class_top1"}), store=planted(labels=False))


def test_settings_of_the_loss_that_the_data_cannot_serve_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"loss.centre_weight needs classes"):
        run(tmp_path, CONFIG.with_overrides({"loss.centre_weight": 0.1}), store=planted(labels=False))


def test_bf16_on_a_cpu_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"bf16.*use 'auto'"):
        run(tmp_path, CONFIG.with_overrides({"train.precision": "bf16"}))


# ---- N processes


# No BatchNorm and no dropout.
SMOOTH = CONFIG.with_overrides(
    CODEBOOK
    | {"eeg.encoder": "eeg-project", "eeg.filters": None, "data.crops": None, "optim.lr": 1e-3, "train.max_passes": 3}
)

# Every loss, each arm, and all that a loss can be made of: by name, the settings over those of `of_pair`.
LOSSES: dict[str, dict[str, Any]] = {
    "triplet": {"loss.name": "triplet"},
    "info_nce": {"loss.name": "info_nce"},
    "siglip": {"loss.name": "siglip"},
    "semi-hard": {
        "loss.name": "triplet",
        "loss.negatives": "semi-hard",
        "loss.margin": 0.5,
        "loss.duplicates": "negatives",
    },
    "everything": {
        "loss.scale": "softplus",
        "loss.direction": "eeg-to-image",
        "loss.normalise_eeg": False,
        "loss.text_weight": 0.1,
        "loss.mse_weight": 0.3,
        "loss.centre_weight": 0.2,
        "image.text": "of each class",
        "data.crops": "centre",
        **CODEBOOK,
    },
    "eeg-classes": {},
    "image-classes": {},
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    """Train each loss for three passes in two processes and return the folder with what they stored."""
    folder = tmp_path_factory.mktemp("pair")
    command = [sys.executable, "-W", "error", __file__]
    processes = [subprocess.Popen([*command, str(rank), str(folder)], stderr=subprocess.PIPE) for rank in (0, 1)]
    errors = [process.communicate(timeout=240)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    return folder


def of_pair(loss: str) -> RunConfig:
    settings = {
        "train.max_passes": 3,
        "optim.lr": 1e-3,
        "optim.schedule": "cosine",
        "optim.clip_norm": 5.0,
        "data.crops": "ten",
    }
    if loss.endswith("-classes"):
        return arm(loss.removesuffix("-classes"), settings)
    return CONFIG.with_overrides(settings | LOSSES[loss])


@pytest.mark.parametrize("loss", LOSSES)
def test_two_processes_give_the_curves_and_weights_of_one(tmp_path, pair, loss):
    alone = run(tmp_path, of_pair(loss), store=partly_labelled())
    together = json.loads((pair / f"{loss}.json").read_text())
    assert len(together["0"]) == 3
    assert together["0"] == together["1"]
    assert_same_curves(alone.history, together["0"])
    ours, theirs = stored(tmp_path)["model"], stored(pair / loss)["model"]
    assert ours.keys() == theirs.keys()
    for name in ours:
        if name.endswith(("weight", "running_var", "log_scale")):
            # Twelve steps at 1e-3 move a weight by up to 1.2e-2. Not so the biases before a BatchNorm: their gradient
            # is nothing but rounding, so they and the running mean that cancels them drift apart.
            torch.testing.assert_close(theirs[name], ours[name], rtol=1e-3, atol=5e-4, msg=name)


def test_a_run_of_two_processes_goes_on_in_one(tmp_path, pair):
    loss = "info_nce"
    for path in (pair / "stopped").rglob("*"):
        target = tmp_path / path.relative_to(pair / "stopped")
        target.mkdir(parents=True) if path.is_dir() else target.write_bytes(path.read_bytes())
    resumed, alone = run(tmp_path, of_pair(loss)), run(tmp_path / "alone", of_pair(loss))
    assert_same_curves(alone.history, resumed.history)


def test_both_processes_skip_a_step_that_is_bad_for_one(pair):
    both = json.loads((pair / "bad.json").read_text())
    assert both["0"] == both["1"]
    assert [metrics["train/bad_steps"] for metrics in both["0"]] == [1.0] * 3


def test_two_processes_stop_at_one_step_when_one_is_told_to_and_lose_nothing(pair):
    halted, whole = (json.loads((pair / f"{name}.json").read_text())["0"] for name in ("halted", "unhalted"))
    assert (pair / "halted-at.json").read_text() == '["pass-000001", "pass-000001-step-000002"]'
    assert timeless(halted) == timeless(whole)
    assert_same_tensors(stored(pair / "halted"), stored(pair / "unhalted"))


def test_two_processes_take_batches_in_parts(tmp_path, pair):
    # Without a BatchNorm, whose statistics are those of a part, parts change nothing at all.
    both, alone = json.loads((pair / "smooth.json").read_text()), run(tmp_path, SMOOTH)
    assert both["0"] == both["1"]
    assert_same_curves(alone.history, both["0"])
    both = json.loads((pair / "cut.json").read_text())
    assert both["0"] == both["1"]
    assert [metrics["train/bad_steps"] for metrics in both["0"]] == [0.0] * 3


def be_one_of_two(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)

    def fit_here(
        config: RunConfig, name: str, store: Store, report=lambda _: None, should_stop=lambda: False, n_parts: int = 1
    ):
        train, val = batches(config, store, rank, 2)
        own = folder / name
        if n_parts > 1 and rank == 0:
            own.mkdir()
            (own / "parts.json").write_text(json.dumps({"parts": n_parts}))
        return fit(
            config,
            built(config),
            train,
            val,
            device="cpu",
            folder=own,
            report=report,
            should_stop=should_stop,
        )

    def share(name: str, history) -> None:
        both: list[Any] = [None, None]
        dist.all_gather_object(both, list(history))
        if rank == 0:
            (folder / f"{name}.json").write_text(json.dumps({"0": both[0], "1": both[1]}))

    for loss in LOSSES:
        share(loss, fit_here(of_pair(loss), loss, partly_labelled()).history)
    share("bad", fit_here(of_pair("info_nce"), "bad", with_eeg(planted(), 5, math.nan)).history)
    share("smooth", fit_here(SMOOTH, "smooth", planted(), n_parts=4).history)
    share("cut", fit_here(of_pair("info_nce"), "cut", planted(), n_parts=2).history)
    with_dropout = of_pair("triplet").with_overrides({"eeg.dropout": 0.5})
    asked = iter([False] * 7 + [True] * 9)  # during step 2 of pass 2, and of the second process only
    try:
        fit_here(with_dropout, "halted", planted(), should_stop=lambda: rank == 1 and next(asked))
    except Stopped:
        (folder / "halted-at.json").write_text(json.dumps([p.name for p in checkpoint.by_age(folder / "halted/last")]))
    for name in ("halted", "unhalted"):
        share(name, fit_here(with_dropout, name, planted()).history)
    try:
        fit_here(of_pair("info_nce"), "stopped", planted(), stop_after(1))
    except Interrupted:
        dist.barrier()
        os._exit(0)  # gloo's threads now and then abort a process that takes them down


if __name__ == "__main__":
    be_one_of_two(int(sys.argv[1]), Path(sys.argv[2]))
