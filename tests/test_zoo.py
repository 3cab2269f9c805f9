"""Architectures of many families from public zoos, randomly initialised, under the monitor for two training steps.

The zoos are not among the test dependencies, because torchvision (which some of them import) is published for the CUDA
build of torch. Put them into a folder of their own and name it in ``DEADKERNEL_ZOO``::

    pip install --target zoo --no-deps torchvision==0.29.2 timm==1.0.31 segmentation-models-pytorch==0.6.0 \
        pytorchcv==0.0.74
    pip install --target zoo huggingface-hub==2.4.0
    DEADKERNEL_ZOO=zoo pytest tests/test_zoo.py
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn

from helpers.training import fit, quiet

ZOO = os.environ.get("DEADKERNEL_ZOO", "")
pytestmark = [
    pytest.mark.zoo,
    pytest.mark.skipif(
        not ZOO, reason="DEADKERNEL_ZOO names no folder with the model zoos (see this file's docstring)"
    ),
    pytest.mark.filterwarnings("error::lightning_deadkernel.errors.DeadKernelWarning"),
]

Shape = tuple[int, ...]
Entry = tuple[Callable[[], nn.Module], Shape]

MODELS: dict[str, Entry] = {}


def _pytorchcv(file: str, name: str, size: int = 64, **options: Any) -> None:
    def make() -> nn.Module:
        # the package's own entry point imports every model, one of which needs torchvision
        model: nn.Module = getattr(import_module(f"pytorchcv.models.{file}"), name)(**options)
        for part in (model, getattr(model, "features", None)):
            if isinstance(getattr(part, "final_pool", None), nn.AvgPool2d):  # made for 224 pixels
                part.final_pool = nn.AdaptiveAvgPool2d(1)  # type: ignore[union-attr]
        return model

    MODELS[f"pytorchcv {name}"] = make, (2, 3, size, size)


def _torchvision(name: str, size: int = 32, **options: Any) -> None:
    MODELS[f"torchvision {name}"] = (
        lambda: getattr(import_module("torchvision.models"), name)(weights=None, **options),
        (2, 3, size, size),
    )


def _timm(name: str, size: int = 64, **options: Any) -> None:
    MODELS[f"timm {name}"] = (
        lambda: import_module("timm").create_model(name, pretrained=False, **options),
        (2, 3, size, size),
    )


def _segmentation(name: str, encoder: str = "resnet18", size: int = 64) -> None:
    MODELS[f"segmentation {name} {encoder}"] = (
        lambda: getattr(import_module("segmentation_models_pytorch"), name)(encoder, encoder_weights=None, classes=3),
        (2, 3, size, size),
    )


for file, name in {
    "resnet": "resnet10",
    "preresnet": "preresnet10",
    "seresnet": "seresnet10",
    "densenet": "densenet121",
    "peleenet": "peleenet",
    "hardnet": "hardnet39ds",
    "vovnet": "vovnet27s",
    "shufflenet": "shufflenet_g3_wd4",
    "shufflenetv2": "shufflenetv2_wd2",
    "menet": "menet108_8x1_g3",
    "igcv3": "igcv3_wd4",
    "mobilenet": "mobilenet_wd4",
    "mobilenetv2": "mobilenetv2_wd4",
    "mobilenetv3": "mobilenetv3_small_w7d20",
    "mnasnet": "mnasnet_small",
    "ghostnet": "ghostnet",
    "efficientnet": "efficientnet_b0",
    "mixnet": "mixnet_s",
    "dicenet": "dicenet_wd5",
    "diracnetv2": "diracnet18v2",
    "condensenet": "condensenet74_c4_g4",
    "octresnet": "octresnet10_ad2",
    "hrnet": "hrnet_w18_small_v1",
    "bamresnet": "bam_resnet18",
    "dla": "dla34",
}.items():
    _pytorchcv(file, name)
for file, name in {
    "nin_cifar": "nin_cifar10",
    "resdropresnet_cifar": "resdropresnet20_cifar10",
    "shakeshakeresnet_cifar": "shakeshakeresnet20_2x16d_cifar10",
    "ror_cifar": "ror3_56_cifar10",
    "fractalnet_cifar": "fractalnet_cifar10",
}.items():
    _pytorchcv(file, name, 32)
for file, name in {"enet": "enet_cityscapes", "unet": "unet_cityscapes", "segnet": "segnet_cityscapes"}.items():
    _pytorchcv(file, name, 64, in_size=(64, 64))
_torchvision("resnet18")
_torchvision("googlenet", 64, init_weights=False)
_torchvision("convnext_tiny")
_torchvision("swin_t")
_torchvision("regnet_y_400mf")
for name in (
    "resnest14d skresnet18 nf_resnet26 ese_vovnet19b_dw cs3darknet_s starnet_s1 fasternet_t0 poolformer_s12 "
    "edgenext_xx_small mobilevit_xxs mobilevitv2_050 efficientvit_b0 lambda_resnet26t repvgg_a0 pvt_v2_b0 caformer_s18 "
    "mambaout_femto"
).split():
    _timm(name)
for name in ("deit_tiny_patch16_224", "resmlp_12_224", "gmlp_ti16_224", "cait_xxs24_224", "xcit_nano_12_p16_224"):
    _timm(name, 32, img_size=32)
for name in ("Unet", "FPN", "Linknet", "DeepLabV3Plus"):
    _segmentation(name)
_segmentation("Segformer", "mit_b0")

SAME_WEIGHTS = [
    "pytorchcv densenet121",
    "pytorchcv resdropresnet20_cifar10",
    "torchvision swin_t",
    "timm cait_xxs24_224",
    "segmentation Unet resnet18",
]


@pytest.fixture(scope="module", autouse=True)
def _zoo() -> Iterator[None]:
    """Puts the zoos behind everything else that can be imported; no torchvision op is run."""
    sys.path.append(str(Path(ZOO).resolve()))
    library = torch.library.Library("torchvision", "FRAGMENT")
    for op in ("nms", "qnms"):  # torchvision describes them at import, and they are in the library it cannot load
        if not hasattr(torch.ops.torchvision, op):
            library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield
    sys.path.remove(str(Path(ZOO).resolve()))


class Training(lightning.LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return sum(t.float().square().mean() for t in _tensors(self.model(batch[0])) if t.requires_grad)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-4, momentum=0.9)


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (list, tuple)):
        for part in output:
            yield from _tensors(part)
    elif isinstance(output, dict):
        yield from _tensors(list(output.values()))


def _build(name: str) -> tuple[Training, list[Tensor]]:
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make()
    return Training(model), [torch.randn(shape) for _ in range(2)]


@pytest.mark.parametrize("name", MODELS)
def test_a_public_architecture_is_watched_nearly_whole_without_a_word(name: str) -> None:
    training, batches = _build(name)
    report = fit(training, batches, monitor=quiet()).report
    assert report is not None
    kernels = {
        title
        for title, module in training.named_modules()
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and module.weight.requires_grad
    }
    listed = {layer.name: layer for layer in report.layers}
    assert kernels <= set(listed)
    left_out = {title: listed[title].excluded for title in kernels if listed[title].excluded is not None}
    assert len(left_out) <= 0.05 * len(kernels), left_out
    assert all(layer.excluded is None or layer.excluded for layer in report.layers)
    unrecognised = [title for title in kernels if "not recognised" in (listed[title].note or "")]
    assert unrecognised == []


@pytest.mark.parametrize("name", SAME_WEIGHTS)
def test_weights_and_random_state_are_bit_identical_to_training_without_the_monitor(name: str) -> None:
    training, batches = _build(name)
    states = []
    for monitored in (False, True):
        twin = copy.deepcopy(training)
        torch.manual_seed(1)
        fit(twin, batches, callbacks=[] if not monitored else [quiet()])
        states.append((twin.state_dict(), torch.get_rng_state()))
    (plain, plain_random), (watched, watched_random) = states
    assert plain.keys() == watched.keys()
    for key, value in plain.items():
        assert torch.equal(value, watched[key]) or (value.isnan().all() and watched[key].isnan().all()), key
    assert torch.equal(plain_random, watched_random)
