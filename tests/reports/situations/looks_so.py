"""What looks like a fault and is none: zeros on purpose, tails by design, frozen parts, data that has little in it."""

from __future__ import annotations

import copy

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Subset, TensorDataset

from helpers.short_runs import Training, conv_norm_net, digits, found, last, mlp, sgd, train
from lightning_deadkernel import DeadKernelMonitor
from reports import situation


def adam(lr: float, **options: float):  # type: ignore[no-untyped-def]
    return lambda parameters: torch.optim.Adam(parameters, lr=lr, **options)


def adamw(lr: float, weight_decay: float):  # type: ignore[no-untyped-def]
    return lambda parameters: torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)


@situation("https://github.com/huggingface/peft/issues/2212")
def the_second_factor_of_an_adapter_starts_at_zero() -> DeadKernelMonitor:
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Linear(64, 48).requires_grad_(False)
            self.down, self.up = nn.Linear(64, 4, bias=False), nn.Linear(4, 48, bias=False)
            nn.init.zeros_(self.up.weight)
            self.head = nn.Linear(48, 10)

        def forward(self, pictures: Tensor) -> Tensor:
            x = pictures.flatten(1)
            return self.head((self.base(x) + self.up(self.down(x))).relu())

    return train(Adapted(), adam(1e-3), epochs=3)


@situation("https://github.com/tensorpack/tensorpack/issues/420", never=("decay",))
def a_residual_network_whose_last_gammas_start_at_zero_under_adamw() -> DeadKernelMonitor:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, 12, 3, padding=1)
            self.conv1, self.norm1 = nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
            self.conv2, self.norm2 = nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
            nn.init.zeros_(self.norm2.weight)
            self.head = nn.Linear(12, 10)

        def forward(self, pictures: Tensor) -> Tensor:
            x = self.stem(pictures).relu()
            x = (x + self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))).relu()
            return self.head(x.mean((2, 3)))

    monitor = train(Residual(), adamw(1e-3, 0.05), epochs=3)
    assert all("decayed" not in finding.cause for report in monitor.reports for finding in report.findings)
    return monitor


@situation("https://github.com/rosinality/vq-vae-2-pytorch/issues/31")
def the_masks_of_a_pixelcnn_hold_half_of_each_kernel_at_zero() -> DeadKernelMonitor:
    class Masked(nn.Conv2d):
        """Sees only the pixels before its own; kind A not even that one."""

        def __init__(self, kind: str, inputs: int, outputs: int) -> None:
            super().__init__(inputs, outputs, 3, padding=1)
            mask = torch.ones_like(self.weight)
            mask[:, :, 1, 1 + (kind == "B") :] = 0
            mask[:, :, 2:] = 0
            self.register_buffer("mask", mask)

        def forward(self, pictures: Tensor) -> Tensor:
            self.weight.data *= self.mask
            return super().forward(pictures)

    net = nn.Sequential(
        Masked("A", 1, 16), nn.BatchNorm2d(16), nn.ReLU(),
        Masked("B", 16, 16), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 1, 1),
    )  # fmt: skip
    pictures = digits().tensors[0].sigmoid()
    return train(net, adam(1e-3), data=TensorDataset(pictures, pictures), loss=F.binary_cross_entropy_with_logits)


@situation("https://github.com/facebookresearch/fairseq/issues/1187")
def the_padding_row_of_a_tied_embedding_is_zero_and_rare_words_are_not_seen() -> DeadKernelMonitor:
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(40, 16, padding_idx=0)
            self.middle, self.out = nn.Linear(16, 16), nn.Linear(16, 40, bias=False)
            self.out.weight = self.words.weight

        def forward(self, words: Tensor) -> Tensor:
            return self.out(self.middle(self.words(words.long())).relu())

    words = torch.randint(1, 30, (512, 6))
    words[:, 4:] = 0
    loss = lambda logits, targets: F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=0)  # noqa: E731
    return train(Language(), adam(1e-3), data=TensorDataset(words.float(), words.roll(-1, 1)), loss=loss, epochs=3)


@situation("https://github.com/tensorflow/tensorflow/issues/433")
def pixels_of_the_border_are_always_off_and_their_weights_decay() -> DeadKernelMonitor:
    """Four rows of twelve are always zero: there is nothing to learn from them, and decay takes their weights."""
    pictures, labels = digits().tensors
    padded = F.pad(pictures, (0, 0, 2, 2))
    monitor = train(
        mlp(96, 32, 10), sgd(0.1, weight_decay=0.05), epochs=5, data=TensorDataset(padded, labels), batch_size=32
    )
    causes = {finding.cause_word for finding in found(last(monitor), "sparse_weights", "net.1")}
    assert causes <= {"dead inputs"}
    return monitor


@situation("https://github.com/tensorflow/probability/issues/751", never=("saturated",))
def a_variance_head_works_in_the_tail_of_its_softplus() -> DeadKernelMonitor:
    class Variance(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.out = nn.Linear(64, 32), nn.Linear(32, 10)
            nn.init.constant_(self.out.bias, -7.0)

        def forward(self, pictures: Tensor) -> Tensor:
            return F.softplus(self.out(self.hidden(pictures.flatten(1)).relu()))

    small = lambda outputs, labels: F.mse_loss(1e3 * outputs, torch.ones_like(outputs))  # noqa: E731
    monitor = train(Variance(), adam(1e-3), loss=small)
    assert last(monitor)["net.out"].states == ["active"] * 10
    return monitor


class FineTuned(Training):
    """A frozen backbone with batch norms, which may be in train or in eval mode."""

    eval_mode = False

    def on_train_epoch_start(self) -> None:
        if self.eval_mode:
            self.net.backbone.eval()


class Pretrained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = conv_norm_net()[:-1].requires_grad_(False)
        self.head = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.backbone(pictures))


@situation("https://github.com/lightly-ai/lightly/issues/1438")
def a_frozen_backbone_whose_batch_norms_are_in_train_mode() -> DeadKernelMonitor:
    monitor = train(FineTuned(Pretrained(), adam(1e-3)))
    assert last(monitor)["net.backbone.0"].excluded is not None
    assert "2 of 4 layers" in last(monitor).verdict
    return monitor


@situation("https://github.com/isht7/pytorch-deeplab-resnet/issues/39")
def a_frozen_backbone_whose_batch_norms_are_in_eval_mode() -> DeadKernelMonitor:
    module = FineTuned(Pretrained(), adam(1e-3))
    module.eval_mode = True
    with torch.no_grad():
        for _ in range(50):  # what training has left in the norms' statistics
            module.net.backbone(digits().tensors[0][:256])
    before = module.net.backbone[1].running_mean.clone()
    monitor = train(module)
    assert torch.equal(module.net.backbone[1].running_mean, before)
    return monitor


class Contrastive(Training):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        first, second = self.net(batch[0]), self.net(batch[0].flip(0))
        distance = (first - second).square().sum(1)
        same = (batch[1] == batch[1].flip(0)).float()
        return (same * distance + (1 - same) * (4.0 - distance).clamp(min=0)).mean()


@situation("https://github.com/adambielski/siamese-triplet/issues/43")
def a_siamese_network_reads_each_layer_twice() -> DeadKernelMonitor:
    return train(Contrastive(mlp(64, 32, 16), adam(1e-3)))


class Segmenter(nn.Module):
    """A U-Net of one step down and one up."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.up, self.join = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(16, 8, 3, padding=1)
        self.out = nn.Conv2d(8, 1, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        first = self.down(pictures).relu()
        inner = self.middle(F.max_pool2d(first, 2)).relu()
        return self.out(self.join(torch.cat([first, self.up(inner).relu()], 1)).relu())


@situation("https://github.com/jakeret/tf_unet/issues/234")
def a_unet_predicts_background_where_two_pixels_of_a_hundred_are_not() -> DeadKernelMonitor:
    """No kernel is at fault: the classes are. The net fires, has gradients, and says background for all."""
    pictures = digits().tensors[0][:600]
    masks = (torch.rand_like(pictures) < 0.02).float()
    net = Segmenter()
    nn.init.constant_(net.out.bias, -4.0)  # what is rare begins as rare, as in RetinaNet
    monitor = train(net, adam(1e-3), data=TensorDataset(pictures, masks), loss=F.binary_cross_entropy_with_logits)
    with torch.no_grad():
        assert float((net(pictures) > 0).float().mean()) < 0.01
    return monitor


class Replay(L.LightningModule):
    """Deep Q-learning on a chain of states: several updates of replayed batches a step, and a target network."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
        self.target = copy.deepcopy(self.net).requires_grad_(False)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        states, actions, rewards, following = batch
        optimizer = self.optimizers()
        for _ in range(2):
            chosen = torch.randint(len(states), (16,))
            with torch.no_grad():
                goal = rewards[chosen] + 0.9 * self.target(following[chosen]).amax(1)
            value = self.net(states[chosen]).gather(1, actions[chosen, None])[:, 0]
            optimizer.zero_grad()
            self.manual_backward(F.smooth_l1_loss(value, goal))
            optimizer.step()
        if batch_idx % 8 == 0:
            self.target.load_state_dict(self.net.state_dict())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.net.parameters(), 1e-3)


@situation("https://github.com/XuGW-Kevin/DrM/issues/4")
def q_learning_from_replayed_batches_by_manual_optimization() -> DeadKernelMonitor:
    states = torch.randn(512, 6)
    data = TensorDataset(states, torch.randint(2, (512,)), states[:, 0], torch.randn(512, 6))
    monitor = train(Replay(), data=data, batch_size=32)
    assert last(monitor)["target.0"].excluded is not None
    return monitor


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 24, batch_first=True), nn.Linear(24, 10)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.lstm(pictures[:, 0])[0][:, -1])


@situation("https://github.com/Atcold/NYU-DLSP20/pull/93")
def all_weights_of_an_lstm_are_watched() -> DeadKernelMonitor:
    monitor = train(Recurrent(), adam(3e-3))
    report = last(monitor)
    assert report.channels == 2 * 4 * 24 + 10  # input and recurrent weights, four gates each
    assert all(layer.excluded is None for layer in report.layers)
    return monitor


@situation("https://github.com/facebookresearch/fastText/issues/74")
def classes_come_one_after_the_other_without_shuffling() -> DeadKernelMonitor:
    order = digits().tensors[1].argsort().tolist()
    return train(conv_norm_net(), sgd(0.01), data=Subset(digits(), order), shuffle=False)


@situation("https://github.com/saprmarks/dictionary_learning/issues/53")
def a_top_k_autoencoder_passes_a_gradient_to_the_chosen_alone() -> DeadKernelMonitor:
    class TopK(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Linear(64, 48), nn.Linear(48, 64)

        def forward(self, pictures: Tensor) -> Tensor:
            code = self.encoder(pictures.flatten(1)).relu()
            best = code.topk(16, -1)
            chosen = torch.zeros_like(code).scatter(-1, best.indices, best.values)
            return self.decoder(chosen).view_as(pictures)

    pictures = digits().tensors[0]
    return train(TopK(), adam(1e-3), data=TensorDataset(pictures, pictures), loss=F.mse_loss)


@situation("https://github.com/google-deepmind/sonnet/issues/257")
def a_codebook_all_of_which_is_used() -> DeadKernelMonitor:
    class Quantized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.codes, self.decoder = nn.Linear(64, 2), nn.Embedding(4, 2), nn.Linear(2, 64)
            with torch.no_grad():
                self.codes.weight.copy_(0.5 * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            z = self.encoder(x)
            chosen = self.codes(torch.cdist(z, self.codes.weight).argmin(1))
            commitment = F.mse_loss(chosen, z.detach()) + 0.25 * F.mse_loss(z, chosen.detach())
            return self.decoder(z + (chosen - z).detach()), commitment

    class Quantizing(Training):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            x = batch[0].flatten(1)
            out, commitment = self.net(x)
            return F.mse_loss(out, x) + commitment

    return train(Quantizing(Quantized(), adam(1e-3)))


@situation("https://arxiv.org/abs/2407.14435")
def a_jump_relu_is_a_gate_made_by_hand() -> DeadKernelMonitor:
    class Jump(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Linear(64, 48), nn.Linear(48, 64)

        def forward(self, pictures: Tensor) -> Tensor:
            x = self.encoder(pictures.flatten(1))
            return self.decoder(x * (x > 0.05)).view_as(pictures)

    pictures = digits().tensors[0]
    net = Jump()
    monitor = train(net, adam(1e-3), data=TensorDataset(pictures, pictures), loss=F.mse_loss)
    with torch.no_grad():
        never = (~(net.encoder(pictures.flatten(1)) > 0.05).any(0)).nonzero().flatten().tolist()
    assert last(monitor)["net.encoder"].dead == never
    return monitor


@situation("https://github.com/soumith/ganhacks/issues/67")
def outputs_behind_a_sigmoid_have_made_up_their_mind() -> DeadKernelMonitor:
    """Two classes that a line tells apart: the probabilities go to 0 and 1, as they should."""
    x = torch.randn(512, 8)
    x[:, 0] += 3 * x[:, 0].sign()
    net = nn.Sequential(nn.Linear(8, 1), nn.Sigmoid())
    with torch.no_grad():
        net[0].weight[0, 0] = 6.0
    data = TensorDataset(x, (x[:, :1] > 0).float())
    monitor = train(net, adam(1e-2), data=data, loss=F.binary_cross_entropy, epochs=3)
    (finding,) = found(last(monitor), "saturated_channels")
    assert "These are outputs of the network" in finding.advice
    return monitor


@situation("https://github.com/Lightning-AI/pytorch-lightning/issues/10914", never=("detach",))
def an_average_of_the_weights_is_kept_in_a_submodule() -> DeadKernelMonitor:
    class Averaged(Training):
        def on_fit_start(self) -> None:
            self.average = torch.optim.swa_utils.AveragedModel(self.net)

        def on_train_batch_end(self, *_: object) -> None:
            self.average.update_parameters(self.net)

    monitor = train(Averaged(mlp(64, 48, 10), sgd(0.05)))
    assert last(monitor)["average.module.1"].excluded is not None
    return monitor


@situation("https://arxiv.org/abs/1703.01780", never=("detach",))
def a_teacher_is_not_frozen_and_in_no_optimizer() -> DeadKernelMonitor:
    class Student(Training):
        def __init__(self, *given: object) -> None:
            super().__init__(*given)
            self.teacher = copy.deepcopy(self.net)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            with torch.no_grad():
                wanted = self.teacher(batch[0] + 0.1)
            return super().training_step(batch, batch_idx) + F.mse_loss(self.net(batch[0]), wanted)

    monitor = train(Student(mlp(64, 48, 10), sgd(0.02)))
    assert last(monitor)["teacher.1"].excluded is not None
    return monitor
