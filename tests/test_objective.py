"""eegvision.objective: every setting of the loss reaches it, terms add up as configured, what is missing is refused."""

import pytest
import torch
from torch.nn import functional as F

from eegvision.config import LossConfig
from eegvision.encoders.joint import Pairs
from eegvision.losses import centre_mse, classification, info_nce, pair_mse, siglip, triplet
from eegvision.objective import batch_loss
from eegvision.vocab import InputError

IDS = torch.tensor([5, 5, 2, 7, 2, 5, 1])  # images of rows
LABELS = torch.tensor([0, 0, 1, 0, 1, 0, -1])


def tensors(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(7, 5, dtype=torch.float64, generator=generator) for _ in range(count)]


def pairs(eeg_BD: torch.Tensor, image_BD: torch.Tensor) -> Pairs:
    return Pairs(eeg_BD, image_BD, torch.tensor(2.0), torch.tensor(-1.5))


def loss_of(text_BF: torch.Tensor | None = None, **settings) -> float:
    config = LossConfig(**settings).resolved()
    outputs = pairs(*tensors(2))
    return batch_loss(config, outputs, image_ids_B=IDS, label_B=LABELS, text_BF=text_BF, seed=4).item()


@pytest.mark.parametrize("duplicates", ["left-out", "negatives"])
def test_each_loss_gets_its_settings(duplicates):
    eeg_BD, image_BD = tensors(2)
    ids = {"image_ids_B": IDS if duplicates == "left-out" else None}
    own = {"duplicates": duplicates}
    for negatives in ("random", "semi-hard", "all"):
        generator = torch.Generator().manual_seed(4)
        expected = triplet(eeg_BD, image_BD, margin=0.7, negatives=negatives, generator=generator, **ids)
        assert loss_of(name="triplet", margin=0.7, negatives=negatives, **own) == expected.item()
    for direction in ("both", "eeg-to-image"):
        expected = info_nce(eeg_BD, image_BD, scale=2.0, direction=direction, **ids)
        assert loss_of(name="info_nce", direction=direction, **own) == expected.item()
    expected = siglip(eeg_BD, image_BD, scale=2.0, bias=-1.5, **ids)
    assert loss_of(name="siglip", **own) == expected.item()


def test_repeats_as_negatives_change_the_loss():
    for name in ("triplet", "info_nce", "siglip"):
        assert loss_of(name=name, duplicates="left-out") != pytest.approx(loss_of(name=name, duplicates="negatives"))


def test_further_terms_are_added_with_their_weights():
    eeg_BD, image_BD = tensors(2)
    plain = loss_of(name="info_nce")
    mse, centre = pair_mse(eeg_BD, image_BD).item(), centre_mse(eeg_BD, image_BD, LABELS).item()
    assert loss_of(name="info_nce", mse_weight=0.3) == pytest.approx(plain + 0.3 * mse)
    assert loss_of(name="info_nce", centre_weight=2.0) == pytest.approx(plain + 2 * centre)
    assert loss_of(name="info_nce", centre_weight=2.0, mse_weight=0.3) == pytest.approx(plain + 2 * centre + 0.3 * mse)


@pytest.mark.parametrize("normalise_image", [True, False])
def test_texts_are_mixed_in_as_images_are_compared(normalise_image):
    # ATM: .99 of the loss with images, .01 of the same loss with texts.
    eeg_BD, image_BD, text_BD = tensors(3)
    images = info_nce(eeg_BD, image_BD, scale=2.0, image_ids_B=IDS)
    in_loss_BD = F.normalize(text_BD, dim=1) if normalise_image else text_BD
    texts = info_nce(eeg_BD, in_loss_BD, scale=2.0)  # seven different texts
    found = loss_of(text_BD, name="info_nce", text_weight=0.01, normalise_image=normalise_image)
    assert found == pytest.approx(0.99 * images.item() + 0.01 * texts.item())


@pytest.mark.parametrize("duplicates", ["left-out", "negatives"])
def test_rows_of_one_text_are_repeats_of_it_whatever_their_images(duplicates):
    eeg_BD, image_BD, text_BD = tensors(3)
    text_BD = text_BD[[0, 0, 1, 0, 1, 0, 2]]  # one text per class
    text_ids = torch.tensor([0, 0, 1, 0, 1, 0, 2])
    ids = (IDS, text_ids) if duplicates == "left-out" else (None, None)
    parts = (
        siglip(eeg_BD, target_BD, scale=2.0, bias=-1.5, image_ids_B=own).item()
        for target_BD, own in zip((image_BD, F.normalize(text_BD, dim=1)), ids, strict=True)
    )
    with_images, with_texts = parts
    found = loss_of(text_BD, name="siglip", text_weight=0.4, duplicates=duplicates)
    assert found == pytest.approx(0.6 * with_images + 0.4 * with_texts)


def test_logits_of_an_arm_are_classified():
    (logit_BK,) = tensors(1)
    for name in ("eeg-classes", "image-classes"):
        loss = batch_loss(LossConfig(name=name).resolved(), logit_BK, image_ids_B=IDS, label_B=LABELS, seed=0)
        assert loss == classification(logit_BK, LABELS)


def test_gradients_of_everything_together_match_finite_differences():
    config = LossConfig(name="info_nce", text_weight=0.3, mse_weight=0.5, centre_weight=0.7).resolved()
    eeg_BD, image_BD, text_BD = tensors(3)
    scale = torch.tensor(2.0, dtype=torch.float64)

    def loss(eeg_BD, image_BD, scale):
        outputs = Pairs(eeg_BD, image_BD, scale, torch.tensor(0.0))
        return batch_loss(config, outputs, image_ids_B=IDS, label_B=LABELS, text_BF=text_BD, seed=0)

    assert torch.autograd.gradcheck(loss, [x.requires_grad_() for x in (eeg_BD, image_BD, scale)])


def test_texts_that_are_missing_or_of_another_size_are_refused():
    with pytest.raises(InputError, match=r"loss.text_weight is 0.01, but the batches have no texts"):
        loss_of(name="info_nce", text_weight=0.01)
    with pytest.raises(InputError, match=r"4 numbers per text, and embeddings have 5; set eeg.embed_dim"):
        loss_of(torch.zeros(7, 4), name="info_nce", text_weight=0.01)
