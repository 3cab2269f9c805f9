"""Transformers, UNets and their kin as their packages build them, trained on small data: they learn, and are quiet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from helpers.short_runs import SEEDS, digits
from reports.healthy._controls import Control, Learner, adamw, check
from zoo.architectures import LENGTH, MODELS, WORDS, ZOO, zoo_importable

pytestmark = [
    pytest.mark.zoo,
    pytest.mark.skipif(not ZOO, reason="DEADKERNEL_ZOO names no folder with the model zoos (see tests/zoo)"),
]
MASK = 1


@pytest.fixture(scope="module", autouse=True)
def _zoo() -> Iterator[None]:
    with zoo_importable():
        yield


def sentences() -> TensorDataset:
    """Sentences that count up from any word by one, two or three."""
    begin, step = torch.randint(WORDS - 3, (512, 1)), torch.randint(1, 4, (512, 1))
    return TensorDataset(3 + (begin + step * torch.arange(LENGTH)) % (WORDS - 3))


def next_word(net: nn.Module, batch: list[Tensor]) -> Tensor:
    return net(input_ids=batch[0], labels=batch[0]).loss


def masked_word(net: nn.Module, batch: list[Tensor]) -> Tensor:
    """All words count, as those that BERT leaves as they are do; 15 % of them are masked."""
    hidden = torch.rand(batch[0].shape) < 0.15
    return net(input_ids=batch[0].masked_fill(hidden, MASK), labels=batch[0]).loss


def class_of_picture(net: nn.Module, batch: list[Tensor]) -> Tensor:
    return net(pixel_values=in_colour(batch[0]), labels=(batch[1] > 4).long()).loss


def heard_words(net: nn.Module, batch: list[Tensor]) -> Tensor:
    """Each word is a tone: one mel band, over two frames; the rest is silence."""
    sound = F.one_hot(batch[0] % 8, 8).float().repeat_interleave(2, 1).mT
    return net(input_features=F.pad(sound, (0, 32 - sound.shape[-1])), labels=batch[0] % 8 + 3).loss


def in_colour(pictures: Tensor, size: int = 16, channels: int = 3) -> Tensor:
    return F.interpolate(pictures, size).expand(-1, channels, -1, -1)


def noise_in(channels: int, size: int, **condition: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """The loss of a diffusion model: the noise that was added to a picture."""

    def loss(net: nn.Module, batch: list[Tensor]) -> Tensor:
        pictures = in_colour(batch[0], size, channels)
        noise, time = torch.randn_like(pictures), torch.randint(100, (len(pictures),))
        share = (time / 100).view(-1, 1, 1, 1)
        mixed = (1 - share).sqrt() * pictures + share.sqrt() * noise
        given = {name: of_labels(batch[1]) for name, of_labels in condition.items()}
        made = net(mixed, timestep=time, **given).sample
        return F.mse_loss(made[:, :channels], noise)

    return loss


def rebuilt(net: nn.Module, batch: list[Tensor]) -> Tensor:
    pictures = in_colour(batch[0])
    latent = net.encode(pictures).latent_dist
    return F.mse_loss(net.decode(latent.sample()).sample, pictures) + 1e-6 * latent.kl().mean()


TEXTS = torch.randn(10, 6, 16)
"""A text for each digit."""

CONTROLS: dict[str, tuple[Callable[..., Tensor], Callable[[], Any], float]] = {
    "transformers BERT gelu": (masked_word, sentences, 3e-3),
    "transformers GPT-2 gelu_new": (next_word, sentences, 3e-3),
    "transformers Llama silu": (next_word, sentences, 3e-3),
    "transformers Mixtral silu": (next_word, sentences, 3e-3),
    "transformers T5 relu": (next_word, sentences, 3e-3),
    "transformers Mamba": (next_word, sentences, 3e-3),
    "transformers Whisper": (heard_words, sentences, 3e-3),
    "transformers ViT": (class_of_picture, digits, 3e-3),
    "diffusers UNet2D": (noise_in(3, 16), digits, 2e-3),
    "diffusers conditional UNet2D": (
        noise_in(4, 16, encoder_hidden_states=lambda labels: TEXTS[labels]),
        digits,
        2e-3,
    ),
    "diffusers DiT": (noise_in(4, 8, class_labels=lambda labels: labels), digits, 3e-3),
    "diffusers VAE": (rebuilt, digits, 2e-3),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", CONTROLS)
def test_a_healthy_network_of_the_zoo_is_quiet(name: str, seed: int) -> None:
    loss, data, rate = CONTROLS[name]
    L.seed_everything(seed, verbose=False)
    epochs, steps, samples = (3, 12, 8) if name.startswith("diffusers") else (4, 25, 16)
    short = {"limit_train_batches": steps}
    check(Control(Learner(MODELS[name].make(), loss, adamw(rate)), data(), epochs, samples, short))
