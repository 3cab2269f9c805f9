"""What stands in the zoo: how each model is made, and a batch for it. No weights are downloaded."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn

ZOO = os.environ.get("DEADKERNEL_ZOO", "")


@contextmanager
def zoo_importable() -> Iterator[None]:
    """Puts the zoos behind everything else that can be imported; no torchvision op is run."""
    sys.path.append(str(Path(ZOO).resolve()))
    library = torch.library.Library("torchvision", "FRAGMENT")
    for op in ("nms", "qnms"):  # torchvision describes them at import, and they are in the library it cannot load
        if not hasattr(torch.ops.torchvision, op):
            library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    try:
        yield
    finally:
        sys.path.remove(str(Path(ZOO).resolve()))


@dataclass(frozen=True)
class Architecture:
    """How to make a model, and the arguments of one call of it."""

    make: Callable[[], nn.Module]
    batch: Callable[[], dict[str, Any] | Tensor]


MODELS: dict[str, Architecture] = {}


class Training(lightning.LightningModule):
    """The model's own loss where it has one, else the mean squares of all that it puts out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any) -> Any:
        return self.model(**batch) if isinstance(batch, dict) else self.model(batch)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        output = self(batch[0])
        loss = getattr(output, "loss", None)
        return loss if loss is not None else sum(t.float().square().mean() for t in tensors(output) if t.requires_grad)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-4, momentum=0.9)


def tensors(output: Any) -> Iterator[Tensor]:
    """All tensors of floats in what a model returns."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, (list, tuple)):
        for part in output:
            yield from tensors(part)
    elif isinstance(output, dict):
        yield from tensors(list(output.values()))


def build(name: str, batches: int = 2) -> tuple[Training, list[Any]]:
    """A model of the zoo, the same at each call, and batches for it."""
    torch.manual_seed(0)
    training = Training(MODELS[name].make())
    return training, [MODELS[name].batch() for _ in range(batches)]


# -- images -----------------------------------------------------------------------------------------------------------


def _images(size: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, 3, size, size)


def _pytorchcv(file: str, name: str, size: int = 64, **options: Any) -> None:
    def make() -> nn.Module:
        # the package's own entry point imports every model, one of which needs torchvision
        model: nn.Module = getattr(import_module(f"pytorchcv.models.{file}"), name)(**options)
        for part in (model, getattr(model, "features", None)):
            if isinstance(getattr(part, "final_pool", None), nn.AvgPool2d):  # made for 224 pixels
                part.final_pool = nn.AdaptiveAvgPool2d(1)  # type: ignore[union-attr]
        return model

    MODELS[f"pytorchcv {name}"] = Architecture(make, _images(size))


def _torchvision(name: str, size: int = 32, **options: Any) -> None:
    MODELS[f"torchvision {name}"] = Architecture(
        lambda: getattr(import_module("torchvision.models"), name)(weights=None, **options), _images(size)
    )


def _timm(name: str, size: int = 64, **options: Any) -> None:
    MODELS[f"timm {name}"] = Architecture(
        lambda: import_module("timm").create_model(name, pretrained=False, **options), _images(size)
    )


def _segmentation(name: str, encoder: str = "resnet18", size: int = 64) -> None:
    MODELS[f"segmentation {name} {encoder}"] = Architecture(
        lambda: getattr(import_module("segmentation_models_pytorch"), name)(encoder, encoder_weights=None, classes=3),
        _images(size),
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


# -- transformers -----------------------------------------------------------------------------------------------------

WORDS, LENGTH = 64, 12
DECODER = {"vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = {
    **DECODER,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
BERT = {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def _sentences() -> dict[str, Tensor]:
    words = torch.randint(3, WORDS, (2, LENGTH))
    return {"input_ids": words, "labels": words}


def _transformers(
    name: str, model: str, config: str, batch: Callable[[], dict[str, Tensor]] = _sentences, **options: Any
) -> None:
    def make() -> nn.Module:
        library = import_module("transformers")
        made: nn.Module = getattr(library, model)(getattr(library, config)(**options))
        return made

    MODELS[f"transformers {name}"] = Architecture(make, batch)


for activation in ("relu", "gelu"):
    _transformers(
        f"BERT {activation}",
        "BertForMaskedLM",
        "BertConfig",
        **BERT,
        intermediate_size=48,
        max_position_embeddings=32,
        hidden_act=activation,
    )
for activation in ("relu", "gelu_new"):
    _transformers(
        f"GPT-2 {activation}",
        "GPT2LMHeadModel",
        "GPT2Config",
        **DECODER,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=32,
        activation_function=activation,
    )
for activation in ("relu", "silu"):
    _transformers(f"Llama {activation}", "LlamaForCausalLM", "LlamaConfig", **LLAMA, hidden_act=activation)
    _transformers(
        f"Mixtral {activation}",
        "MixtralForCausalLM",
        "MixtralConfig",
        **LLAMA,
        num_local_experts=4,
        num_experts_per_tok=2,
        hidden_act=activation,
    )
for feed_forward in ("relu", "gated-gelu"):
    _transformers(
        f"T5 {feed_forward}",
        "T5ForConditionalGeneration",
        "T5Config",
        vocab_size=WORDS,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        feed_forward_proj=feed_forward,
    )
_transformers(
    "ViT",
    "ViTForImageClassification",
    "ViTConfig",
    lambda: {"pixel_values": torch.randn(2, 3, 16, 16), "labels": torch.randint(2, (2,))},
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    image_size=16,
    patch_size=8,
)
_transformers(
    "Whisper",
    "WhisperForConditionalGeneration",
    "WhisperConfig",
    lambda: {"input_features": torch.randn(2, 8, 32), "labels": torch.randint(3, WORDS, (2, LENGTH))},
    **DECODER,
    decoder_start_token_id=1,
    num_mel_bins=8,
    d_model=32,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    max_source_positions=16,
    max_target_positions=32,
)
_transformers("Mamba", "MambaForCausalLM", "MambaConfig", **DECODER, hidden_size=32, state_size=8, num_hidden_layers=2)
_transformers(
    "Mamba-2",
    "Mamba2ForCausalLM",
    "Mamba2Config",
    **DECODER,
    hidden_size=32,
    state_size=8,
    num_hidden_layers=2,
    num_heads=8,
    head_dim=8,
    n_groups=1,
    chunk_size=8,
)


# -- diffusers --------------------------------------------------------------------------------------------------------


def _diffusers(name: str, model: str, batch: Callable[[], dict[str, Any]], **options: Any) -> None:
    MODELS[f"diffusers {name}"] = Architecture(lambda: getattr(import_module("diffusers"), model)(**options), batch)


SMALL_UNET = {"sample_size": 16, "layers_per_block": 1, "block_out_channels": (16, 32), "norm_num_groups": 8}

_diffusers(
    "UNet2D",
    "UNet2DModel",
    lambda: {"sample": torch.randn(2, 3, 16, 16), "timestep": torch.randint(100, (2,))},
    **SMALL_UNET,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=8,
)
_diffusers(
    "conditional UNet2D",
    "UNet2DConditionModel",
    lambda: {
        "sample": torch.randn(2, 4, 16, 16),
        "timestep": torch.randint(100, (2,)),
        "encoder_hidden_states": torch.randn(2, 6, 16),
    },
    **SMALL_UNET,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    cross_attention_dim=16,
    attention_head_dim=8,
)
_diffusers(
    "DiT",
    "DiTTransformer2DModel",
    lambda: {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "timestep": torch.randint(100, (2,)),
        "class_labels": torch.randint(10, (2,)),
    },
    num_attention_heads=2,
    attention_head_dim=16,
    in_channels=4,
    out_channels=8,
    num_layers=2,
    norm_num_groups=8,
    sample_size=8,
    patch_size=2,
    num_embeds_ada_norm=10,
)
_diffusers(
    "VAE",
    "AutoencoderKL",
    lambda: {"sample": torch.randn(2, 3, 16, 16), "sample_posterior": True},
    block_out_channels=(16, 32),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    norm_num_groups=8,
    latent_channels=4,
    sample_size=16,
)


# -- graphs -----------------------------------------------------------------------------------------------------------

NODES, EDGES = 20, 60


def _geometric(name: str, **options: Any) -> None:
    MODELS[f"geometric {name}"] = Architecture(
        lambda: getattr(import_module("torch_geometric.nn"), name)(8, 16, 3, 5, **options),
        lambda: {"x": torch.randn(NODES, 8), "edge_index": torch.randint(NODES, (2, EDGES))},
    )


for name in ("GCN", "GraphSAGE", "GIN", "EdgeCNN"):
    _geometric(name)
_geometric("GAT", heads=2)
_geometric("PNA", aggregators=["mean", "max"], scalers=["identity"], deg=torch.tensor([0, 1, 5, 8]))
