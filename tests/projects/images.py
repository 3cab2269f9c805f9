"""Projects that look at images."""

from __future__ import annotations

import copy
from importlib import import_module
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from projects.running import project


def _pictures(classes: int = 3, size: int = 32, count: int = 4, batch: int = 8) -> list[Any]:
    return [[torch.rand(batch, 3, size, size), torch.randint(classes, (batch,))] for _ in range(count)]


class Classifier(lightning.LightningModule):
    """The module of a first tutorial."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 1e-3)


@project("timm ResNet")
def _timm() -> tuple[Any, Any]:
    return Classifier(import_module("timm").create_model("test_resnet", num_classes=3)), _pictures()


@project(
    "segmentation-models-pytorch Unet",
    expected={"unwatched_layers": "of an encoder of depth 3, the last two stages are there and not used"},
)
def _smp() -> tuple[Any, Any]:
    smp = import_module("segmentation_models_pytorch")

    class Pets(lightning.LightningModule):
        """As in that project's tutorial on binary segmentation with Lightning."""

        def __init__(self) -> None:
            super().__init__()
            self.model = smp.Unet("resnet18", 3, encoder_weights=None, decoder_channels=(32, 16, 8), classes=1)
            self.loss = smp.losses.DiceLoss("binary", from_logits=True)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss: Tensor = self.loss(self.model(batch[0]), batch[1])
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), 2e-4)
            return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)]

    return Pets(), [[x, (x.mean(1, keepdim=True) > 0.5).float()] for x, _ in _pictures(batch=2)]


@project("MONAI UNet and discriminator, a GAN by manual optimization")
def _monai() -> tuple[Any, Any]:
    nets = import_module("monai.networks.nets")

    class Translation(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.generator = nets.UNet(2, 3, 3, channels=(8, 16, 16), strides=(2, 2), num_res_units=1)
            self.discriminator = nets.PatchDiscriminator(2, 8, 3, num_layers_d=2)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            first, second = self.optimizers()
            fake = self.generator(batch[0])
            self.toggle_optimizer(first)
            loss = (self.discriminator(fake)[-1] - 1).square().mean()
            first.zero_grad()
            self.manual_backward(loss)
            first.step()
            self.untoggle_optimizer(first)
            self.toggle_optimizer(second)
            real, made = self.discriminator(batch[0])[-1], self.discriminator(fake.detach())[-1]
            second.zero_grad()
            self.manual_backward((real - 1).square().mean() + made.square().mean())
            second.step()
            self.untoggle_optimizer(second)

        def configure_optimizers(self) -> Any:
            return [torch.optim.Adam(p.parameters(), 2e-4) for p in (self.generator, self.discriminator)]

    return Translation(), _pictures(batch=4)


@project("lightly BYOL, with a momentum encoder")
def _lightly() -> tuple[Any, Any]:
    heads, utils = import_module("lightly.models.modules"), import_module("lightly.models.utils")
    loss = import_module("lightly.loss").NegativeCosineSimilarity()
    network = import_module("lightly.models").ResNetGenerator("resnet-9", 0.25)
    backbone = nn.Sequential(*list(network.children())[:-1], nn.AdaptiveAvgPool2d(1))

    class Byol(lightning.LightningModule):
        """As in that project's example with Lightning."""

        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone
            self.projection = heads.BYOLProjectionHead(128, 64, 32)
            self.prediction = heads.BYOLPredictionHead(32, 64, 32)
            self.slow_backbone, self.slow_projection = copy.deepcopy(self.backbone), copy.deepcopy(self.projection)
            utils.deactivate_requires_grad(self.slow_backbone)
            utils.deactivate_requires_grad(self.slow_projection)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            utils.update_momentum(self.backbone, self.slow_backbone, m=0.99)
            utils.update_momentum(self.projection, self.slow_projection, m=0.99)
            one, other = batch[0], batch[0].flip(-1)
            quick = [self.prediction(self.projection(self.backbone(x).flatten(1))) for x in (one, other)]
            slow = [self.slow_projection(self.slow_backbone(x).flatten(1)).detach() for x in (one, other)]
            value: Tensor = 0.5 * (loss(quick[0], slow[1]) + loss(quick[1], slow[0]))
            return value

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.06)

    return Byol(), _pictures()


@project(
    "anomalib Ganomaly, by manual optimization",
    begins_anew="the generator's step adds to gradients of the discriminator that are in no checkpoint",
)
def _anomalib() -> tuple[Any, Any]:
    kind = import_module("anomalib.models").Ganomaly
    small = kind.configure_pre_processor((32, 32))
    module = kind(n_features=8, latent_vec_size=8, pre_processor=small, evaluator=False, visualizer=False)
    return module, [import_module("anomalib.data").ImageBatch(image=x) for x, _ in _pictures()]


@project("torch-uncertainty packed ensemble")
def _uncertainty() -> tuple[Any, Any]:
    net = import_module("torch_uncertainty.models.classification.lenet").packed_lenet(3, 3, num_estimators=2)
    routine = import_module("torch_uncertainty.routines").ClassificationRoutine(
        num_classes=3,
        model=net,
        loss=nn.CrossEntropyLoss(),
        optim_recipe=torch.optim.SGD(net.parameters(), 0.01, momentum=0.9),
        is_ensemble=True,
        format_batch_fn=import_module("torch_uncertainty.transforms").RepeatTarget(2),
    )
    return routine, _pictures()


@project(
    "pytorch-metric-learning triplets",
    expected={"dead_channels": "4 of 8 units of a squeeze never fire on 32 images of noise"},
)
def _metric() -> tuple[Any, Any]:
    losses, miners = import_module("pytorch_metric_learning.losses"), import_module("pytorch_metric_learning.miners")
    loss, miner = losses.TripletMarginLoss(), miners.MultiSimilarityMiner()

    class Embedding(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            found = self.net(batch[0])
            value: Tensor = loss(found, batch[1], miner(found, batch[1]))
            return value

    return Embedding(import_module("timm").create_model("mobilenetv3_small_050", num_classes=16)), _pictures()


@project("diffusers DDPM")
def _diffusers() -> tuple[Any, Any]:
    library = import_module("diffusers")

    class Ddpm(lightning.LightningModule):
        """As in that project's tutorial on training."""

        def __init__(self) -> None:
            super().__init__()
            self.model = library.UNet2DModel(
                sample_size=16,
                layers_per_block=1,
                block_out_channels=(16, 32),
                norm_num_groups=8,
                down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                up_block_types=("AttnUpBlock2D", "UpBlock2D"),
                attention_head_dim=8,
            )
            self.schedule = library.DDPMScheduler(100)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            noise = torch.randn_like(batch[0])
            times = torch.randint(100, (len(noise),))
            found = self.model(self.schedule.add_noise(batch[0], noise, times), times, return_dict=False)[0]
            return nn.functional.mse_loss(found, noise)

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), 1e-4)
            schedule = import_module("diffusers.optimization").get_cosine_schedule_with_warmup(optimizer, 2, 8)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    return Ddpm(), _pictures(size=16, batch=4)
