"""What cannot be seen is said: backbones cut off, layers in no module, steps that do not happen."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.short_runs import Training, digits, found, last, mlp, sgd, train
from lightning_deadkernel import DeadKernelMonitor
from reports import situation


class Headed(nn.Module):
    """Two hidden layers and a head; a subclass says what is wrong between them."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.head = nn.Linear(48, 10)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.backbone(pictures))


def share(net: nn.Module, *parts: str) -> float:
    """The share of the weights of all linear layers that these modules hold."""
    sizes = {name: m.weight.numel() + m.bias.numel() for name, m in net.named_modules() if isinstance(m, nn.Linear)}
    return sum(size for name, size in sizes.items() if name.startswith(parts)) / sum(sizes.values())


@situation(
    "https://discuss.pytorch.org/t/detach-no-grad-and-requires-grad/16915",
    first="unwatched_layers network: cut off",
    advice=("detach()",),
)
def a_backbone_behind_a_detach_never_learns() -> DeadKernelMonitor:
    class Net(Headed):
        def forward(self, pictures: Tensor) -> Tensor:
            return self.head(self.backbone(pictures).detach())

    monitor = train(net := Net())
    (finding,) = found(last(monitor), "unwatched_layers")
    assert finding.evidence["layers"] == 2
    assert abs(float(finding.evidence["share_of_weights"]) - share(net, "backbone")) < 0.01
    return monitor


@situation(
    "https://discuss.pytorch.org/t/detach-no-grad-and-requires-grad/16915",
    first="unwatched_layers network: cut off",
    advice=("no_grad()",),
)
def features_are_computed_under_no_grad_by_mistake() -> DeadKernelMonitor:
    class Net(Headed):
        def forward(self, pictures: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.backbone(pictures)
            return self.head(x)

    monitor = train(Net())
    assert last(monitor).channels == 10
    return monitor


@situation(
    "https://github.com/pytorch/pytorch/issues/715",
    first="unwatched_layers network: *",
    advice=("ModuleList",),
)
def layers_in_a_plain_list_are_not_trained() -> DeadKernelMonitor:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = [nn.Linear(64, 48), nn.Linear(48, 48)]
            self.head = nn.Linear(48, 10)

        def forward(self, pictures: Tensor) -> Tensor:
            x = pictures.flatten(1)
            for layer in self.hidden:
                x = layer(x).relu()
            return self.head(x)

    net = Net()
    before = [layer.weight.clone() for layer in net.hidden]
    monitor = train(net)
    assert all(torch.equal(layer.weight, old) for layer, old in zip(net.hidden, before, strict=True))
    return monitor


@situation(
    "https://github.com/pytorch/pytorch/issues/632",
    first="unwatched_layers network: *",
    advice=("nn.Parameter",),
)
def a_weight_kept_in_a_dict_belongs_to_no_module() -> DeadKernelMonitor:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = {"first": nn.Parameter(0.1 * torch.randn(48, 64))}
            self.head = nn.Linear(48, 10)

        def forward(self, pictures: Tensor) -> Tensor:
            return self.head(F.linear(pictures.flatten(1), self.weights["first"]).relu())

    return train(Net())


@situation(
    "https://github.com/Lightning-AI/pytorch-lightning/issues/6339",
    first="unwatched_layers network: backward not seen",
    advice=("self.manual_backward(loss)",),
)
def a_step_with_a_backward_of_its_own_that_returns_none() -> DeadKernelMonitor:
    class Own(Training):
        automatic_optimization = False

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            super().training_step(batch, batch_idx).backward()  # not even manual_backward
            optimizer.step()

    monitor = train(Own(mlp(64, 32, 10), sgd(0.05)))
    report = last(monitor)
    assert [len(layer.unknown) for layer in report.layers] == [32, 10]
    assert report.samples == len(digits())
    return monitor


@situation(
    "https://runebook.dev/en/docs/pytorch/generated/torch.optim.optimizer.step",
    first="update_too_small network: no step",
    advice=("optimizer.step()",),
)
def the_optimizer_is_never_stepped() -> DeadKernelMonitor:
    class Forgetful(Training):
        automatic_optimization = False

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.manual_backward(super().training_step(batch, batch_idx))

    net = mlp(64, 32, 10)
    before = net[1].weight.clone()
    monitor = train(Forgetful(net, sgd(0.05)))
    assert torch.equal(net[1].weight, before)
    return monitor


@situation(
    "https://runebook.dev/en/docs/pytorch/generated/torch.optim.optimizer.step",
    first="frozen_weights net.*: unknown",
    advice=("gradient", "before the step"),
)
def gradients_are_zeroed_between_backward_and_step() -> DeadKernelMonitor:
    class WrongOrder(Training):
        automatic_optimization = False

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            optimizer = self.optimizers()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.zero_grad()
            optimizer.step()

    net = mlp(64, 32, 10)
    before = net[1].weight.clone()
    monitor = train(WrongOrder(net, sgd(0.05)))
    assert torch.equal(net[1].weight, before)
    return monitor


@situation(
    "https://github.com/jaehyunnn/ViTPose_pytorch/issues/20",
    first="update_too_small network: learning rate zero",
    advice=("schedule",),
)
def the_learning_rate_warms_up_and_quickly_becomes_zero() -> DeadKernelMonitor:
    net = mlp(64, 32, 10)
    monitor = train(net, epochs=4, schedule=lambda step: 0.0 if step >= 29 else step / 29)
    assert last(monitor)["net.1"].update_ratio in (0.0, None)
    return monitor


@situation(
    "https://github.com/huggingface/pytorch-openai-transformer-lm/pull/6",
    first="frozen_weights net.*: not in the optimizer",
    advice=("configure_optimizers",),
)
def a_new_head_was_not_passed_to_the_optimizer() -> DeadKernelMonitor:
    net = mlp(64, 32, 10)
    old = net[3].weight.clone()
    monitor = train(net, optimized=lambda net: list(net[1].parameters()))
    assert torch.equal(net[3].weight, old)
    return monitor


@situation(
    "https://github.com/joaopauloschuler/neural-api/issues/35",
    first=("no_gradient net.1: dead inputs", "dead_channels net.1: dead inputs"),
    besides=("dead_channels net.1: dead inputs", "no_gradient net.1: dead inputs"),
    advice=("data",),
)
def all_pictures_are_black_after_an_integer_division() -> DeadKernelMonitor:
    """What is left of a first layer is its bias: no weight of it ever gets a gradient."""
    pictures, labels = digits().tensors
    pictures = (pictures.sigmoid() * 255).to(torch.uint8) // 255  # below 255 everywhere
    assert not bool(pictures.any())
    net = mlp(64, 32, 10)
    before = net[1].weight.clone()
    monitor = train(net, data=torch.utils.data.TensorDataset(pictures.float(), labels))
    assert torch.equal(net[1].weight, before)
    return monitor


@situation(
    "https://github.com/Lornatang/SRGAN-PyTorch/issues/1",
    first="frozen_weights net.*: learning rate next to zero",
    advice=("schedule has ended",),
)
def a_decay_meant_for_epochs_is_applied_at_each_step() -> DeadKernelMonitor:
    net = mlp(64, 32, 10)
    monitor = train(net, epochs=4, schedule=lambda step: 0.5**step)
    assert last(monitor)["net.1"].frozen == list(range(32))
    return monitor


@situation(
    "https://github.com/sktime/pytorch-forecasting/pull/1750",
    first="update_too_small net.*: clipped",
    advice=("Raise gradient_clip_val",),
    besides=("frozen_weights net.*: clipped",),
)
def gradients_are_clipped_to_next_to_nothing() -> DeadKernelMonitor:
    net = mlp(64, 32, 10)
    monitor = train(net, epochs=3, gradient_clip_val=1e-6)
    # of all parameters, to which no step of so small a norm adds more
    assert all(float(layer.update_ratio or 0.0) < 1e-6 for layer in last(monitor).watched)
    return monitor


@situation(
    "https://pytorch.org/docs/stable/generated/torch.Tensor.register_hook.html",
    first="no_gradient net.3: gradient taken away",
    advice=("a hook",),
)
def a_hook_holds_the_weights_of_a_layer() -> DeadKernelMonitor:
    net = mlp(64, 32, 32, 10)
    net[3].weight.register_hook(torch.zeros_like)
    before = net[3].weight.clone()
    monitor = train(net)
    assert torch.equal(net[3].weight, before)
    return monitor


@situation(
    "https://github.com/jaehyunnn/ViTPose_pytorch/issues/20",
    first="frozen_weights net.1: unknown",
    advice=("gradient zeroed before the step",),
)
def the_gradients_of_one_layer_are_zeroed_before_the_step() -> DeadKernelMonitor:
    class Held(Training):
        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            for parameter in self.net[1].parameters():
                parameter.grad.zero_()

    net = mlp(64, 32, 10)
    before = net[1].weight.clone()
    monitor = train(Held(net, lambda parameters: torch.optim.Adam(parameters, 1e-3)))
    assert torch.equal(net[1].weight, before)
    return monitor
