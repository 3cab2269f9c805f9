"""Image classifiers small enough to read in a minute and to train in seconds on a CPU."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F

ActivationName = Literal["relu", "leaky_relu", "elu", "gelu", "silu", "sigmoid", "tanh"]
OptimizerName = Literal["adam", "adamw", "sgd"]
InitName = Literal["default", "he", "constant", "uniform"]

ACTIVATIONS: dict[ActivationName, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


def make_activation(name: ActivationName) -> nn.Module:
    """A new activation module by name.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"Expected `activation` to be one of {', '.join(ACTIVATIONS)}, but got {name!r}.")
    return ACTIVATIONS[name]()


def initialise(layers: Iterable[nn.Module], init: InitName, scale: float) -> None:
    """Fill the weights of convolution and linear layers in place; biases become 0 unless `init` is "default".

    Args:
        layers: The Conv2d and Linear layers among them are filled.
        init: "default" leaves PyTorch's own; "he" is normal with variance 2 / fan-in (He et al. 2015, arXiv
            1502.01852); "constant" gives all weights one value; "uniform" draws them from U(-scale, scale).
        scale: The value for "constant", the bound for "uniform"; unused otherwise.

    Raises:
        ValueError: If `init` is none of these.
    """
    if init not in ("default", "he", "constant", "uniform"):
        raise ValueError(f"Expected `init` to be one of default, he, constant, uniform, but got {init!r}.")
    if init == "default":
        return
    for module in layers:
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if init == "he":
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif init == "constant":
            nn.init.constant_(module.weight, scale)
        else:
            nn.init.uniform_(module.weight, -scale, scale)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class ImageClassifier(L.LightningModule):
    """Loss, accuracy and optimizer: what the networks below have in common.

    Logs `train_loss` at every step, `val_loss` and `val_accuracy`, `test_loss` and `test_accuracy` once per epoch.

    Args:
        optimizer: "adam" (its weight decay is an L2 term in the gradient), "adamw" (its weight decay is apart from the
            gradient) or "sgd".
        lr: Learning rate.
        weight_decay: Weight decay of all parameters, norms and biases included.
        momentum: Momentum of "sgd"; unused otherwise.
        l1: Factor of the sum of all |w| that is added to the loss; norms and biases are left out.

    Raises:
        ValueError: If `optimizer` is none of these, or `l1` is negative.
    """

    def __init__(
        self,
        optimizer: OptimizerName = "adam",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        l1: float = 0.0,
    ) -> None:
        super().__init__()
        if optimizer not in ("adam", "adamw", "sgd"):
            raise ValueError(f"Expected `optimizer` to be one of adam, adamw, sgd, but got {optimizer!r}.")
        self.optimizer: OptimizerName = optimizer
        self.lr = lr
        self.weight_decay = weight_decay
        self.momentum = momentum
        if l1 < 0:
            raise ValueError(f"Expected `l1` to be 0 or a positive float, but got {l1!r}.")
        self.l1 = l1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimizer for all parameters."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                self.parameters(), lr=self.lr, weight_decay=self.weight_decay, momentum=self.momentum
            )
        adam = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return adam(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross entropy of one batch: images (N, C, H, W), labels (N,)."""
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss, prog_bar=True)
        if self.l1:
            loss = loss + self.l1 * sum(weight.abs().sum() for weight in self.parameters() if weight.ndim > 1)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Logs `val_loss` and `val_accuracy`."""
        self._evaluate(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Logs `test_loss` and `test_accuracy`."""
        self._evaluate(batch, "test")

    def _evaluate(self, batch: tuple[Tensor, Tensor], split: str) -> None:
        images, labels = batch
        logits = self(images)
        accuracy = (logits.argmax(1) == labels).float().mean()
        self.log_dict({f"{split}_loss": F.cross_entropy(logits, labels), f"{split}_accuracy": accuracy}, prog_bar=True)


class SmallCNN(ImageClassifier):
    """Two convolutions with batch norm, then a linear layer; for images of 8x8 pixels and more.

    conv1 -> norm1 -> activation -> 2x2 max pool -> conv2 -> norm2 -> activation -> average to 2x2 -> head

    Args:
        in_channels: Channels of the images.
        classes: Number of classes.
        width: Kernels of the first convolution; the second has twice as many.
        activation: Activation after each norm.
        **optimization: `optimizer`, `lr`, `weight_decay`, `momentum` and `l1` of `ImageClassifier`.
    """

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 10,
        width: int = 16,
        activation: ActivationName = "relu",
        **optimization: Any,
    ) -> None:
        super().__init__(**optimization)
        self.save_hyperparameters()
        # The norm subtracts the mean, so a bias before it would do nothing.
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * width)
        self.activation = make_activation(activation)
        self.head = nn.Linear(2 * width * 2 * 2, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to logits (N, classes)."""
        x = F.max_pool2d(self.activation(self.norm1(self.conv1(images))), 2)
        x = F.adaptive_avg_pool2d(self.activation(self.norm2(self.conv2(x))), 2)
        logits: Tensor = self.head(x.flatten(1))
        return logits


class PlainCNN(ImageClassifier):
    """Three convolutions without any normalisation, then a linear layer; for images of 8x8 pixels and more.

    (conv -> activation) three times with a 2x2 max pool after the first two -> average to 2x2 -> head

    Args:
        in_channels: Channels of the images.
        classes: Number of classes.
        width: Kernels of the first convolution; the second and third have twice as many.
        activation: Activation after each convolution.
        init: How the weights before the head are drawn, see `initialise`; the head has PyTorch's own.
        init_scale: The value for `init="constant"`, the bound for "uniform"; unused otherwise.
        **optimization: `optimizer`, `lr`, `weight_decay`, `momentum` and `l1` of `ImageClassifier`.
    """

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 10,
        width: int = 16,
        activation: ActivationName = "relu",
        init: InitName = "default",
        init_scale: float = 0.05,
        **optimization: Any,
    ) -> None:
        super().__init__(**optimization)
        self.save_hyperparameters()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.activation = make_activation(activation)
        self.head = nn.Linear(2 * width * 2 * 2, classes)
        initialise([self.conv1, self.conv2, self.conv3], init, init_scale)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to logits (N, classes)."""
        x = F.max_pool2d(self.activation(self.conv1(images)), 2)
        x = F.max_pool2d(self.activation(self.conv2(x)), 2)
        x = F.adaptive_avg_pool2d(self.activation(self.conv3(x)), 2)
        logits: Tensor = self.head(x.flatten(1))
        return logits


class MLP(ImageClassifier):
    """A multilayer perceptron of any depth: linear1 -> [norm1 ->] activation1 -> ... -> head.

    Args:
        in_features: Values of one flattened image: 64 for digits, 784 for Fashion-MNIST.
        classes: Number of classes.
        depth: Number of hidden layers.
        width: Units of each hidden layer.
        activation: Activation after each hidden layer.
        norm: Put batch norm between each hidden layer and its activation.
        init: How the weights before the head are drawn, see `initialise`; the head has PyTorch's own.
        init_scale: The value for `init="constant"`, the bound for "uniform"; unused otherwise.
        **optimization: `optimizer`, `lr`, `weight_decay`, `momentum` and `l1` of `ImageClassifier`.

    Raises:
        ValueError: If `depth` is less than 1.
    """

    def __init__(
        self,
        in_features: int = 64,
        classes: int = 10,
        depth: int = 4,
        width: int = 64,
        activation: ActivationName = "relu",
        norm: bool = False,
        init: InitName = "default",
        init_scale: float = 0.05,
        **optimization: Any,
    ) -> None:
        super().__init__(**optimization)
        if depth < 1:
            raise ValueError(f"Expected `depth` to be a positive int, but got {depth}.")
        self.save_hyperparameters()
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for i in range(1, depth + 1):
            layers[f"linear{i}"] = nn.Linear(in_features if i == 1 else width, width, bias=not norm)
            if norm:
                layers[f"norm{i}"] = nn.BatchNorm1d(width)
            layers[f"activation{i}"] = make_activation(activation)
        initialise(layers.values(), init, init_scale)
        layers["head"] = nn.Linear(width, classes)
        self.net = nn.Sequential(layers)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, *) of `in_features` values each to logits (N, classes)."""
        logits: Tensor = self.net(images)
        return logits
