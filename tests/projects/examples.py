"""Repositories that are no packages: modules of lightning-hydra-template, and the examples of Lightning itself."""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from projects.running import project
from zoo.architectures import ZOO

REPOSITORIES = Path(ZOO).resolve() / "repositories"


def _pictures(*shape: int, classes: int = 10, count: int = 4, size: int = 16) -> list[Any]:
    return [[torch.rand(size, *shape), torch.randint(classes, (size,))] for _ in range(count)]


def _example(path: str) -> ModuleType:
    """A script among Lightning's examples, as a module."""
    file = REPOSITORIES / "pytorch-lightning" / "examples" / "pytorch" / path
    if not file.is_file():
        raise ImportError(f"no clone of Lightning's repository is in {REPOSITORIES}")
    specification = spec_from_file_location(f"example_{file.stem}", file)
    assert specification is not None
    assert specification.loader is not None
    module = module_from_spec(specification)
    sys.modules[specification.name] = module  # where checkpoints look for its classes
    specification.loader.exec_module(module)
    return module


@project("lightning-hydra-template MNIST", trainer={"limit_val_batches": 1})
def _template() -> tuple[Any, Any]:
    root = REPOSITORIES / "lightning-hydra-template"
    if not root.is_dir():
        raise ImportError(f"no clone of lightning-hydra-template is in {REPOSITORIES}")
    sys.path.append(str(root))
    try:
        net = import_module("src.models.components.simple_dense_net").SimpleDenseNet(input_size=64)
        kind = import_module("src.models.mnist_module").MNISTLitModule
    finally:
        sys.path.remove(str(root))
    module = kind(
        net, partial(torch.optim.Adam, lr=1e-3), partial(torch.optim.lr_scheduler.ReduceLROnPlateau, mode="min"), False
    )
    return module, _pictures(1, 8, 8)


@project(
    "Lightning's example of an autoencoder",
    expected={"dead_channels": "a step of Adam at a learning rate of 0.01 changes 45 % of a weight"},
)
def _autoencoder() -> tuple[Any, Any]:
    return _example("basics/autoencoder.py").LitAutoEncoder(), _pictures(1, 28, 28)


@project("Lightning's example of a GAN by manual optimization")
def _gan() -> tuple[Any, Any]:
    example: Any = _example("domain_templates/generative_adversarial_net.py")
    example.torchvision = import_module("torchvision")  # Lightning looks for it when it is imported
    return example.GAN((1, 8, 8)), _pictures(1, 8, 8)


@project("Lightning's example of a language model")
def _language_model() -> tuple[Any, Any]:
    module = _example("basics/transformer.py").LanguageModel(64)
    words = [torch.randint(64, (2, 9)) for _ in range(4)]
    return module, [[w[:, :-1], w[:, 1:].contiguous()] for w in words]


class _Pole:
    """An environment of the old gym's interface: its state is pushed to one side or the other."""

    observation_space = SimpleNamespace(shape=(4,))

    def __init__(self, discrete: type) -> None:
        self.action_space = discrete()
        self.action_space.n = 2
        self.state = torch.zeros(4)
        self.random = torch.Generator().manual_seed(0)

    def reset(self) -> list[float]:
        self.state = 0.1 * torch.randn(4, generator=self.random)
        return self.state.tolist()

    def step(self, action: Any) -> tuple[list[float], float, bool, dict[str, Any]]:
        push = torch.tensor([0.0, 0.1, 0.0, -0.1]) * (2 * int(action) - 1)
        self.state = 0.95 * self.state + push + 0.02 * torch.randn(4, generator=self.random)
        return self.state.tolist(), 1.0 - float(self.state.abs().sum()), float(self.state.abs().max()) > 0.6, {}


@project(
    "Lightning's example of PPO by manual optimization",
    begins_anew="the trajectory under way and the state of its environment are in no checkpoint",
)
def _ppo() -> tuple[Any, Any]:
    gym: Any = ModuleType("gym")
    box, discrete = type("Box", (), {}), type("Discrete", (), {})
    gym.spaces = SimpleNamespace(box=SimpleNamespace(Box=box), discrete=SimpleNamespace(Discrete=discrete))
    gym.make = lambda name: _Pole(discrete)
    sys.modules["gym"] = gym
    try:
        kind = _example("domain_templates/reinforce_learn_ppo.py").PPOLightning
        return kind("Pole", batch_size=16, steps_per_epoch=64, max_episode_len=20), None
    finally:
        del sys.modules["gym"]
