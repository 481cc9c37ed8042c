"""eegvision.analyses.channels: the definition by a naive loop, noise, errors by simulation, planted truth, refusals."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from eegvision.analyses import channels
from eegvision.analyses.channels import ChannelImportance, Noise, average, channel_importance, joined, noise_rows
from eegvision.config import EegConfig, ImageConfig, LossConfig, RunConfig
from eegvision.encoders.joint import JointModel, build_joint
from eegvision.vocab import InputError

NAMES = ("Fz", "Cz", "Pz", "O1", "O2")
N_TIMES, SFREQ_HZ = 160, 250.0
NOISE = Noise(sfreq_hz=SFREQ_HZ, n_draws=2, seed=3)


class Linear:
    """phi(e) = sum over c, t of w_dct e_ct, for segments of one length."""

    def __init__(self, weight_DCT: torch.Tensor) -> None:
        self.weight_DCT = weight_DCT

    def encode_eeg(self, eeg_BCT: torch.Tensor, subject_B: torch.Tensor | None = None, /) -> torch.Tensor:
        assert subject_B is None
        if eeg_BCT.shape[1:] != self.weight_DCT.shape[1:]:
            raise InputError("another length")
        return torch.einsum("dct,bct->bd", self.weight_DCT, eeg_BCT)


def model_of(encoder: str, *, loss: str = "info_nce", **eeg: Any) -> JointModel:
    torch.manual_seed(0)
    config = RunConfig(
        eeg=EegConfig(encoder=encoder, embed_dim=8, **eeg),  # pyrefly: ignore[bad-argument-type]
        image=ImageConfig(embed_dim=8, size_px=16),
        loss=LossConfig(name=loss),  # pyrefly: ignore[bad-argument-type]
    )
    model = build_joint(config, len(NAMES), N_TIMES, SFREQ_HZ, subjects=("a", "b", "c") if "subjects" in eeg else ())
    with torch.no_grad():
        for name, buffer in model.named_buffers():  # as after training: BatchNorm that does something
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.3)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and parameter.std() < 0.03:  # NICE's start, from which embeddings hardly differ
                parameter.mul_(8)
            if name.endswith("maps_SCC"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def chunk(n_segments: int = 3, n_dims: int = 8) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    generator = torch.Generator().manual_seed(1)
    eeg_BCT = 2 * torch.randn(n_segments, len(NAMES), N_TIMES, generator=generator) + 1
    image_BD = torch.randn(n_segments, n_dims, generator=generator)
    return eeg_BCT, image_BD, [f"sub-01-{n:05d}" for n in range(n_segments)]


@torch.no_grad()
def naive(
    model: Any,
    eeg_BCT: torch.Tensor,
    image_BD: torch.Tensor,
    ids: list[str],
    noise: Noise,
    subject_B: torch.Tensor | None = None,
) -> np.ndarray:
    """Importance of each draw [B, R, C] by the definition, one copy of one segment at a time."""
    value_BRC = np.empty((len(ids), noise.n_draws, len(NAMES)))
    for b, segment_id in enumerate(ids):
        subject = None if subject_B is None else subject_B[b : b + 1]
        whole = float(model.encode_eeg(eeg_BCT[b : b + 1], subject)[0] @ image_BD[b])
        for draw in range(noise.n_draws):
            rows_CT = noise_rows(eeg_BCT[b].numpy(), segment_id, NAMES, draw, noise)
            for channel in range(len(NAMES)):
                copy_1CT = eeg_BCT[b : b + 1].clone()
                copy_1CT[0, channel] = torch.from_numpy(rows_CT[channel])
                value_BRC[b, draw, channel] = whole - float(model.encode_eeg(copy_1CT, subject)[0] @ image_BD[b])
    return value_BRC


@pytest.mark.parametrize(
    ("encoder", "is_split", "loss", "eeg"),
    [
        ("palazzo-gru", True, "info_nce", {"hidden": 16}),
        ("palazzo-lstm", True, "triplet", {"hidden": 16}),
        ("palazzo-gru", False, "triplet", {"hidden": 16, "channels": "mixed"}),
        ("tsconv", True, "triplet", {}),
        ("tsconv", True, "info_nce", {"filters": 6}),
        ("tsconv", False, "info_nce", {"subjects": "layer"}),
        ("nice-shallow", True, "info_nce", {}),
        ("nice-deep", True, "info_nce", {}),
        ("nice-eegnet", True, "info_nce", {}),
        ("nice-sa", False, "info_nce", {}),
        ("eeg-project", False, "info_nce", {}),
    ],
)
def test_importance_is_that_of_a_naive_loop_with_the_same_noise(encoder, is_split, loss, eeg):
    model = model_of(encoder, loss=loss, **eeg)
    assert (channels._row_parts(model, len(NAMES)) is not None) == is_split
    eeg_BCT, image_BD, ids = chunk()
    subject_B = torch.tensor([2, 0, -1]) if "subjects" in eeg else None
    expected_BRC = naive(model, eeg_BCT, image_BD, ids, NOISE, subject_B)
    found = channel_importance(model, eeg_BCT, image_BD, ids, NAMES, NOISE, subject_B=subject_B, batch_size=13)
    scale = np.abs(expected_BRC).max()
    assert scale > 0.02
    np.testing.assert_allclose(found.importance_NC, expected_BRC.mean(axis=1), atol=2e-4 * scale)
    error_BC = expected_BRC.std(axis=1, ddof=1) / 2**0.5
    np.testing.assert_allclose(found.draw_error_NC, error_BC, atol=2e-4 * scale)
    whole_B = (model.encode_eeg(eeg_BCT, subject_B) * image_BD).sum(1)
    np.testing.assert_allclose(found.compatibility_N, whole_B.detach().numpy(), atol=1e-5)
    assert (found.encoded, found.samples, found.noise) == ("segment", None, NOISE)


@pytest.mark.parametrize("encoder", ["tsconv", "nice-sa"])
def test_chunks_their_order_and_the_batch_size_do_not_matter(encoder):
    model, (eeg_BCT, image_BD, ids) = model_of(encoder), chunk(5)
    whole = channel_importance(model, eeg_BCT, image_BD, ids, NAMES, NOISE)

    def part(rows: list[int], batch_size: int) -> ChannelImportance:
        own = [ids[row] for row in rows]
        return channel_importance(model, eeg_BCT[rows], image_BD[rows], own, NAMES, NOISE, batch_size=batch_size)

    pieces = joined([part([4, 1], 1), part([2], 11), part([3, 0], 64)])
    assert pieces.segment_ids == whole.segment_ids == tuple(ids)
    for name in ("importance_NC", "draw_error_NC", "compatibility_N"):
        np.testing.assert_allclose(getattr(pieces, name), getattr(whole, name), atol=1e-5)


def test_noise_belongs_to_segment_channel_draw_stretch_and_seed_and_to_nothing_else():
    row_CT = np.random.default_rng(0).standard_normal((5, N_TIMES)).astype(np.float32)
    first = noise_rows(row_CT, "s", NAMES, 0, NOISE)
    np.testing.assert_array_equal(noise_rows(row_CT, "s", NAMES, 0, NOISE), first)
    np.testing.assert_array_equal(noise_rows(row_CT[[3, 1]], "s", ("O1", "Cz"), 0, NOISE), first[[3, 1]])
    more = dataclasses.replace(NOISE, n_draws=9)
    np.testing.assert_array_equal(noise_rows(row_CT, "s", NAMES, 0, more), first)
    others = [
        noise_rows(row_CT, "t", NAMES, 0, NOISE),
        noise_rows(row_CT, "s", ("A", "B", "C", "D", "E"), 0, NOISE),
        noise_rows(row_CT, "s", NAMES, 1, NOISE),
        noise_rows(row_CT, "s", NAMES, 0, NOISE, first=8),
        noise_rows(row_CT, "s", NAMES, 0, dataclasses.replace(NOISE, seed=4)),
    ]
    together = np.concatenate([first, *others])
    correlation = np.corrcoef(together) - np.eye(len(together))
    assert np.abs(correlation).max() < 0.45  # 435 pairs of about 130 independent numbers


def test_noise_has_the_rows_mean_and_variance_at_every_sample_and_nothing_above_the_cutoff():
    noise = Noise(sfreq_hz=1000.0, cutoff_hz=100.0)
    row_1T = np.linspace(-3, 7, 200, dtype=np.float32)[None]
    drawn_RT = np.concatenate([noise_rows(row_1T, "s", ("Cz",), draw, noise) for draw in range(3000)])
    sd = float(row_1T.std())
    np.testing.assert_allclose(drawn_RT.mean(axis=0), 2, atol=4.5 * sd / 3000**0.5)
    np.testing.assert_allclose(drawn_RT.std(axis=0), sd, rtol=4.5 / 6000**0.5)
    # A Hann window keeps what the cut of a stretch smears at bay.
    power_F = (np.abs(np.fft.rfft((drawn_RT - 2) * np.hanning(200), axis=1)) ** 2).mean(axis=0)
    rate_hz_F = np.fft.rfftfreq(200, 1e-3)
    assert power_F[rate_hz_F > 115].max() < 1e-3 * power_F[rate_hz_F < 90].mean()
    np.testing.assert_allclose(
        power_F[(rate_hz_F > 5) & (rate_hz_F < 90)] / power_F[rate_hz_F < 90].mean(), 1, rtol=0.12
    )
    assert abs(np.corrcoef(drawn_RT[:, 0], drawn_RT[:, -1])[0, 1]) < 0.1  # ends do not meet
    assert np.corrcoef(drawn_RT[:, 100], drawn_RT[:, 101])[0, 1] > 0.9


@pytest.mark.parametrize("cutoff_hz", [100.0, 130.0])
def test_without_room_for_a_filter_noise_is_white_and_the_result_says_so(cutoff_hz):
    noise = Noise(sfreq_hz=200.0, cutoff_hz=cutoff_hz, n_draws=1)
    row_1T = np.tile(np.array([[-1.0, 1.0]], dtype=np.float32), (1, 40))
    drawn_RT = np.concatenate([noise_rows(row_1T, "s", ("Cz",), draw, noise) for draw in range(2000)])
    assert abs(np.corrcoef(drawn_RT[:, 40], drawn_RT[:, 41])[0, 1]) < 0.1
    model = Linear(torch.ones(2, len(NAMES), N_TIMES))
    eeg_BCT, image_BD, ids = chunk(n_dims=2)
    found = channel_importance(model, eeg_BCT, image_BD, ids, NAMES, noise)
    assert not found.noise.is_filtered
    assert np.isnan(found.draw_error_NC).all()
    assert NOISE.is_filtered


def test_a_constant_row_is_replaced_by_itself():
    row_1T = np.full((1, 30), 2.5, dtype=np.float32)
    np.testing.assert_array_equal(noise_rows(row_1T, "s", ("Cz",), 0, NOISE), row_1T)


def test_of_a_linear_model_the_mean_over_draws_and_its_error_are_the_known_ones():
    # E[I_c] = sum_t u_ct (e_ct - mean_c),   Var[I_c] = var_c u_c' K u_c,   u = sum_d theta_d w_d, K = <x x'>
    generator = torch.Generator().manual_seed(5)
    model = Linear(torch.randn(4, len(NAMES), N_TIMES, generator=generator))
    eeg_BCT, image_BD, ids = chunk(40, n_dims=4)
    noise = Noise(sfreq_hz=SFREQ_HZ, n_draws=16)
    found = channel_importance(model, eeg_BCT, image_BD, ids, NAMES, noise)
    weight_BCT = torch.einsum("bd,dct->bct", image_BD, model.weight_DCT).double().numpy()
    centred_BCT = eeg_BCT.double().numpy()
    centred_BCT -= centred_BCT.mean(axis=2, keepdims=True)
    expected_BC = (weight_BCT * centred_BCT).sum(axis=2)
    lag = np.abs(np.arange(N_TIMES)[:, None] - np.arange(N_TIMES))
    n_waves = 128  # 100 Hz of 320 samples at 250 Hz
    kernel_TT = np.cos(2 * np.pi * lag[..., None] * np.arange(1, n_waves + 1) / (2 * N_TIMES)).sum(axis=-1)
    kernel_TT = (1 + 2 * kernel_TT) / (1 + 2 * n_waves)
    variance_BC = centred_BCT.var(axis=2) * np.einsum("bct,ts,bcs->bc", weight_BCT, kernel_TT, weight_BCT)
    z_BC = (found.importance_NC - expected_BC) / np.sqrt(variance_BC / 16)
    assert abs(z_BC.mean()) < 4 / 200**0.5
    assert abs(z_BC.std() - 1) < 4 / 400**0.5
    ratio_BC = found.draw_error_NC**2 / (variance_BC / 16)
    assert abs(ratio_BC.mean() - 1) < 4 * (2 / 15 / 200) ** 0.5


def test_planted_channel_and_interval_are_found_where_samples_outside_become_noise():
    weight_DCT = torch.zeros(2, len(NAMES), N_TIMES)
    weight_DCT[0, 1, 40:80] = torch.randn(40, generator=torch.Generator().manual_seed(2))
    model, (eeg_BCT, image_BD, ids) = Linear(weight_DCT), chunk(6, n_dims=2)
    image_BD = model.encode_eeg(eeg_BCT)
    inside = channel_importance(model, eeg_BCT, image_BD, ids, NAMES, NOISE, samples=(40, 80))
    after = channel_importance(model, eeg_BCT, image_BD, ids, NAMES, NOISE, samples=(80, 160))
    whole = channel_importance(model, eeg_BCT, image_BD, ids, NAMES, NOISE)
    assert inside.encoded == after.encoded == "noise outside"
    assert inside.samples == (40, 80)
    for found in (inside, whole):
        assert found.importance_NC[:, [0, 2, 3, 4]].max() < 1e-4 < found.importance_NC[:, 1].mean()
    np.testing.assert_allclose(after.importance_NC, 0, atol=1e-4)


def test_samples_outside_are_drawn_anew_with_each_draw_and_are_the_same_with_and_without_a_channel():
    model, (eeg_BCT, image_BD, ids) = model_of("tsconv"), chunk()
    found = channel_importance(model, eeg_BCT, image_BD, ids, NAMES, NOISE, samples=(40, 100))
    whole_RB, lost_RB = np.empty((2, 3)), np.empty((2, 3))
    for b, segment_id in enumerate(ids):
        for draw in range(2):
            seen_CT = eeg_BCT[b].numpy().copy()
            within_CT = noise_rows(seen_CT[:, 40:100], segment_id, NAMES, draw, NOISE, first=40)
            seen_CT[:, :40] = noise_rows(seen_CT[:, :40], segment_id, NAMES, draw, NOISE)
            seen_CT[:, 100:] = noise_rows(seen_CT[:, 100:], segment_id, NAMES, draw, NOISE, first=100)
            lost_CT = seen_CT.copy()
            lost_CT[3, 40:100] = within_CT[3]
            with torch.no_grad():
                both_2D = model.encode_eeg(torch.from_numpy(np.stack([seen_CT, lost_CT])))
            whole_RB[draw, b], lost_RB[draw, b] = (both_2D @ image_BD[b]).tolist()
    assert found.encoded == "noise outside"
    assert np.abs(whole_RB[0] - whole_RB[1]).min() > 1e-3
    np.testing.assert_allclose(found.compatibility_N, whole_RB.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(found.importance_NC[:, 3], (whole_RB - lost_RB).mean(axis=0), atol=1e-5)


def test_where_the_encoder_takes_any_length_the_excerpt_alone_is_encoded():
    model, (eeg_BCT, image_BD, ids) = model_of("palazzo-gru", hidden=16), chunk()
    found = channel_importance(model, eeg_BCT, image_BD, ids, NAMES, NOISE, samples=(20, 60))
    assert found.encoded == "excerpt"
    excerpt_BCT = eeg_BCT[:, :, 20:60]
    with torch.no_grad():
        whole_BD = model.encode_eeg(excerpt_BCT)
    np.testing.assert_allclose(found.compatibility_N, (whole_BD * image_BD).sum(1).numpy(), atol=1e-5)
    expected = []
    for draw in range(2):
        copy_BCT = excerpt_BCT.clone()
        for b, segment_id in enumerate(ids):
            rows_CT = noise_rows(excerpt_BCT[b].numpy(), segment_id, NAMES, draw, NOISE, first=20)
            copy_BCT[b, 4] = torch.from_numpy(rows_CT[4])
        with torch.no_grad():
            expected.append(((whole_BD - model.encode_eeg(copy_BCT)) * image_BD).sum(1).numpy())
    np.testing.assert_allclose(found.importance_NC[:, 4], np.mean(expected, axis=0), atol=1e-5)


def test_an_interval_in_seconds_is_cut_at_samples():
    place = {"t_min_s": 0.0, "sfreq_hz": 1000.0, "n_times": 440}
    cuts = [channels.samples_of(interval_s, **place) for interval_s in channels.PALAZZO_INTERVALS_S]
    assert cuts == [(0, 80), (80, 160), (160, 320), (320, 440)]
    assert channels.samples_of((0.0, 0.1), t_min_s=-0.2, sfreq_hz=250.0, n_times=300) == (50, 75)
    for interval_s in ((0.4, 0.5), (0.2, 0.2), (-0.1, 0.1)):
        with pytest.raises(InputError, match=r"run from 0 to 0.44 s"):
            channels.samples_of(interval_s, **place)


# ---- averages


def importance_of(value_NC: np.ndarray, draw_error_NC: np.ndarray | None = None) -> ChannelImportance:
    return ChannelImportance(
        segment_ids=tuple(f"{n:04d}" for n in range(len(value_NC))),
        channels=NAMES[: value_NC.shape[1]],
        compatibility_N=np.zeros(len(value_NC)),
        importance_NC=value_NC,
        draw_error_NC=np.zeros_like(value_NC) if draw_error_NC is None else draw_error_NC,
        noise=NOISE,
        samples=None,
        encoded="segment",
    )


def test_averages_by_hand():
    value_N1 = np.array([[1.0], [3.0], [5.0], [10.0]])
    found = importance_of(value_N1, np.array([[3.0], [4.0], [0.0], [1.0]]))
    by_class = average(found, np.array(["a", "a", "b", "c"]), np.array(["cat", "cat", "cat", "dog"]))
    assert (by_class.groups, by_class.channels) == (("cat", "dog"), ("Fz",))
    np.testing.assert_allclose(by_class.mean_GC, [[3], [10]])
    # residuals -2, 0, 2: sums -2 and 2 over the pictures; sqrt(2/1 (4 + 4)) / 3
    np.testing.assert_allclose(by_class.error_GC, [[4 / 3], [np.nan]])
    np.testing.assert_allclose(by_class.draw_error_GC, [[5 / 3], [1]])
    assert (by_class.n_segments_G.tolist(), by_class.n_units_G.tolist()) == ([3, 1], [2, 1])
    everything = average(found, np.array(["a", "a", "b", "c"]))
    assert everything.groups == ("all",)
    np.testing.assert_allclose(everything.mean_GC, [[4.75]])


def test_errors_of_averages_are_the_spread_of_means_over_new_pictures():
    rng = np.random.default_rng(0)
    unit_N = np.repeat(np.arange(40), rng.integers(1, 5, 40))
    means, errors = [], []
    for _ in range(600):
        value_N1 = (rng.standard_normal(40)[unit_N] + 0.7 * rng.standard_normal(len(unit_N)))[:, None]
        averages = average(importance_of(value_N1), unit_N)
        means.append(averages.mean_GC[0, 0])
        errors.append(averages.error_GC[0, 0])
    spread = np.std(means)
    assert abs(np.sqrt(np.mean(np.square(errors))) / spread - 1) < 0.1
    assert value_N1.std() / len(unit_N) ** 0.5 < 0.85 * spread, "as if segments were independent: too small"


def test_errors_of_averages_hold_what_draws_add():
    # A linear model and one segment again and again: all that differs between units is their noise.
    model = Linear(torch.randn(3, len(NAMES), N_TIMES, generator=torch.Generator().manual_seed(1)))
    eeg_1CT, image_1D, _ = chunk(1, n_dims=3)
    ids = [f"{n}" for n in range(200)]
    found = channel_importance(
        model, eeg_1CT.expand(200, -1, -1), image_1D.expand(200, -1), ids, NAMES, dataclasses.replace(NOISE, n_draws=4)
    )
    averages = average(found, np.arange(200))
    np.testing.assert_allclose(averages.draw_error_GC, averages.error_GC, rtol=0.2)


# ---- refusals


def test_joining_refuses_chunks_that_do_not_belong_together():
    part = importance_of(np.ones((2, 2)))
    with pytest.raises(InputError, match="no chunk to join"):
        joined([])
    with pytest.raises(InputError, match="segment '0000' is in two chunks"):
        joined([part, part])
    other = dataclasses.replace(part, noise=dataclasses.replace(NOISE, seed=9), segment_ids=("x", "y"))
    with pytest.raises(InputError, match="chunks differ in noise"):
        joined([part, other])
    assert joined([dataclasses.replace(part, segment_ids=("x", "a"))]).segment_ids == ("a", "x")


def test_averages_refuse_units_that_do_not_fit():
    with pytest.raises(InputError, match=r"2 segments with units of shape \(3,\)"):
        average(importance_of(np.ones((2, 2))), np.arange(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": ["a", "b"]}, "with 2 segment ids and 5 channel names"),
        ({"ids": ["a", "b", "a"]}, "segment id 'a' is there twice"),
        ({"names": ("Fz", "Cz", "Pz", "O1", "O1")}, "channel 'O1' is there twice"),
        ({"samples": (10, 161)}, "samples 10 to 161 of segments of 160"),
        ({"image": torch.zeros(3, 7)}, r"image embeddings of shape \(3, 7\); expected \(3, 8\)"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"nan": True}, "'sub-01-00001' is not finite at channel 'Pz'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, message):
    model, (eeg_BCT, image_BD, ids) = model_of("tsconv"), chunk()
    if change.get("nan"):
        eeg_BCT[1, 2, 5] = torch.nan
    with pytest.raises(InputError, match=message):
        channel_importance(
            model,
            eeg_BCT,
            change.get("image", image_BD),
            change.get("ids", ids),
            change.get("names", NAMES),
            NOISE,
            samples=change.get("samples"),
            batch_size=change.get("batch_size", 16),
        )


def test_segments_of_another_data_set_or_rate_are_refused():
    model, (eeg_BCT, image_BD, ids) = model_of("tsconv"), chunk()
    model.data["channels"] = list(NAMES)
    channel_importance(model, eeg_BCT, image_BD, ids, NAMES, NOISE)
    swapped = (*NAMES[:3], "O2", "O1")
    with pytest.raises(InputError, match=r"trained on channels Fz, Cz, Pz, O1, O2 at 250 Hz.*Pz, O2, O1 at 250 Hz"):
        channel_importance(model, eeg_BCT, image_BD, ids, swapped, NOISE)
    with pytest.raises(InputError, match=r"at 250 Hz, and these are .* at 1000 Hz"):
        channel_importance(model, eeg_BCT, image_BD, ids, NAMES, Noise(sfreq_hz=1000.0))
    with pytest.raises(InputError, match=r"3 segments with subjects of shape \(2,\)"):
        channel_importance(model, eeg_BCT, image_BD, ids, NAMES, NOISE, subject_B=torch.zeros(2, dtype=torch.int64))


def test_models_whose_embedding_is_no_function_of_the_segment_alone_are_refused():
    eeg_BCT, image_BD, ids = chunk()
    with pytest.raises(InputError, match=r"call model\.eval\(\)"):
        channel_importance(model_of("tsconv").train(), eeg_BCT, image_BD, ids, NAMES, NOISE)
    with pytest.raises(InputError, match="place in the batch"):
        channel_importance(model_of("nice-ga", variant="released"), eeg_BCT, image_BD, ids, NAMES, NOISE)
    channel_importance(model_of("nice-ga", variant="published"), eeg_BCT, image_BD, ids, NAMES, NOISE)


@pytest.mark.parametrize("wrong", [{"sfreq_hz": 0.0}, {"cutoff_hz": -1.0}, {"n_draws": 0}, {"seed": -1}])
def test_noise_that_cannot_be_drawn_is_refused(wrong):
    given: dict[str, Any] = {"sfreq_hz": 250.0, **wrong}
    with pytest.raises(InputError, match=f"noise.{next(iter(wrong))} is"):
        Noise(**given)
