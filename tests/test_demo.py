from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

from helpers.training import SAFELY
from lightning_deadkernel.demo import (
    MLP,
    DatasetNotFoundError,
    DigitsDataModule,
    FashionMNISTDataModule,
    PlainCNN,
    SmallCNN,
)
from lightning_deadkernel.demo.datamodules import DEBIAN_FASHION_MNIST, BatchedTensors, read_idx

needs_fashion_mnist = pytest.mark.skipif(
    not Path(DEBIAN_FASHION_MNIST).is_dir(), reason="the Debian package dataset-fashion-mnist is not installed"
)


def write_idx(path: Path, values: np.ndarray, element: int = 0x08) -> None:
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, element, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


def write_fashion(folder: Path, train: int = 20, test: int = 6) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {}
    for prefix, count in (("train", train), ("t10k", test)):
        arrays[f"{prefix}-images-idx3"] = rng.integers(0, 256, (count, 28, 28))
        arrays[f"{prefix}-labels-idx1"] = rng.integers(0, 10, count)
    for name, values in arrays.items():
        write_idx(folder / f"{name}-ubyte.gz", values)
    return arrays


def test_an_idx_file_reads_back_as_it_was_written(tmp_path: Path) -> None:
    values = np.arange(2 * 3 * 5).reshape(2, 3, 5)
    write_idx(tmp_path / "x.gz", values)
    tensor = read_idx(tmp_path / "x.gz")
    assert tensor.dtype == torch.uint8
    assert tensor.tolist() == values.tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"plain text", "not a whole gzip file"),
        (gzip.compress(b"\x00\x00\x08\x01" + struct.pack(">I", 3) + b"abc")[:-9], "not a whole gzip file"),
        (gzip.compress(b"P5 28 28"), "not an IDX file"),
        (gzip.compress(b""), "not an IDX file"),
        (gzip.compress(b"\x00\x00\x0d\x01" + struct.pack(">I", 1) + b"abcd"), "type 0x0d"),
        (gzip.compress(b"\x00\x00\x08\x03" + struct.pack(">I", 1)), "ends within its header"),
        (gzip.compress(b"\x00\x00\x08\x01" + struct.pack(">I", 4) + b"abc"), "4 values, but has 3"),
        (gzip.compress(b"\x00\x00\x08\x01" + struct.pack(">I", 2) + b"abc"), "2 values, but has 3"),
    ],
    # gzip writes the time of day, which must not become part of a test's name.
    ids=["plain", "cut", "other format", "empty", "floats", "no sizes", "short", "long"],
)
def test_a_damaged_idx_file_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "damaged.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as refusal:
        read_idx(path)
    assert "damaged.gz" in str(refusal.value)


def test_a_missing_fashion_mnist_names_the_folder_the_file_and_the_package(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError) as refusal:
        FashionMNISTDataModule(root=str(tmp_path)).setup()
    message = str(refusal.value)
    assert isinstance(refusal.value, FileNotFoundError)
    for word in (str(tmp_path), "train-images-idx3-ubyte.gz", "dataset-fashion-mnist"):
        assert word in message


def test_the_splits_of_fashion_mnist_hold_every_image_once_with_its_own_label(tmp_path: Path) -> None:
    arrays = write_fashion(tmp_path)
    data = FashionMNISTDataModule(root=str(tmp_path), val_size=5)
    data.setup()
    train, val, test = (data.splits[name].tensors for name in ("train", "val", "test"))
    assert [len(split[0]) for split in (train, val, test)] == [15, 5, 6]
    assert train[0].shape == (15, 1, 28, 28)
    assert train[0].dtype == torch.float32
    assert train[1].dtype == torch.int64
    label_of = {
        image.tobytes(): label
        for image, label in zip(
            arrays["train-images-idx3"].astype(np.uint8), arrays["train-labels-idx1"].tolist(), strict=True
        )
    }
    images, labels = torch.cat([train[0], val[0]]), torch.cat([train[1], val[1]])
    stored = (images * 255).round().to(torch.uint8)
    assert len({image.numpy().tobytes() for image in stored}) == 20
    assert [label_of[image.numpy().tobytes()] for image in stored] == labels.tolist()
    assert (test[0] * 255).round().flatten().tolist() == arrays["t10k-images-idx3"].flatten().tolist()


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.zeros(19))
    with pytest.raises(ValueError, match="do not belong together"):
        FashionMNISTDataModule(root=str(tmp_path)).setup()


@needs_fashion_mnist
def test_debians_fashion_mnist_has_its_known_sizes_and_mean() -> None:
    data = FashionMNISTDataModule()
    data.setup()
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 55000, "val": 5000, "test": 10000}
    pixels = torch.cat([data.splits["train"].tensors[0], data.splits["val"].tensors[0]])
    # 0.2860 and 0.3530 are the mean and deviation that are quoted for its 60000 training images everywhere.
    assert pixels.double().mean().item() == pytest.approx(0.2860, abs=5e-5)
    assert pixels.double().std().item() == pytest.approx(0.3530, abs=5e-5)
    labels = torch.cat([data.splits["train"].tensors[1], data.splits["val"].tensors[1]])
    assert labels.bincount().tolist() == [6000] * 10


def test_the_digits_are_all_there_in_zero_to_one_and_split_the_same_way_whatever_the_seed() -> None:
    splits = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        data = DigitsDataModule()
        state = torch.get_rng_state()
        data.setup()
        assert torch.equal(torch.get_rng_state(), state)
        splits.append(data.splits)
    first, second = splits
    assert {name: len(split) for name, split in first.items()} == {"train": 1256, "val": 256, "test": 285}
    images = torch.cat([split.tensors[0] for split in first.values()])
    assert images.shape == (1797, 1, 8, 8)
    assert (images.min().item(), images.max().item()) == (0.0, 1.0)
    for name in first:
        assert torch.equal(first[name].tensors[0], second[name].tensors[0])
        assert torch.equal(first[name].tensors[1], second[name].tensors[1])
        assert first[name].tensors[1].unique().tolist() == list(range(10))


def test_options_of_the_data_do_what_they_say() -> None:
    plain, other = DigitsDataModule(), DigitsDataModule(subset=100, binarise=True, flatten=True)
    plain.setup()
    other.setup()
    images, labels = other.splits["train"].tensors
    assert images.shape == (100, 64)
    assert images.unique().tolist() == [0.0, 1.0]
    assert torch.equal(images, (plain.splits["train"].tensors[0][:100].flatten(1) > 0.5).float())
    assert torch.equal(labels, plain.splits["train"].tensors[1][:100])
    assert len(other.splits["val"]) == 256
    standard = DigitsDataModule(standardise=True)
    standard.setup()
    assert standard.splits["train"].tensors[0].mean().item() == pytest.approx(0, abs=1e-5)
    assert standard.splits["train"].tensors[0].std().item() == pytest.approx(1, abs=1e-5)
    assert standard.splits["test"].tensors[0].mean().item() != 0


@pytest.mark.parametrize("option", ["batch_size", "subset", "val_size"])
def test_sizes_that_are_not_positive_are_refused_by_name(option: str) -> None:
    with pytest.raises(ValueError, match=f"`{option}` to be a positive int, but got 0"):
        DigitsDataModule(**{option: 0})


def test_asking_for_more_images_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="1512 images, but got 1000 and 600"):
        DigitsDataModule(val_size=1000, subset=600).setup()


def test_an_epoch_of_batches_is_every_training_image_once_in_a_new_order() -> None:
    data = DigitsDataModule(batch_size=100)
    data.setup()
    epochs = [[images for images, _ in data.train_dataloader()] for _ in range(2)]
    assert [len(images) for images in epochs[0]] == [100] * 12 + [56]
    rows = [torch.cat(epoch).flatten(1) for epoch in epochs]
    assert not torch.equal(rows[0], rows[1])
    expected = sorted(data.splits["train"].tensors[0].flatten(1).tolist())
    assert sorted(rows[0].tolist()) == sorted(rows[1].tolist()) == expected


def test_a_batch_is_gathered_whole_and_in_the_order_asked_for() -> None:
    images, labels = torch.arange(12.0).reshape(6, 2), torch.arange(6)
    rows, numbers = BatchedTensors(images, labels).__getitems__([4, 0, 4])
    assert rows.tolist() == [[8, 9], [0, 1], [8, 9]]
    assert numbers.tolist() == [4, 0, 4]
    assert pickle.loads(pickle.dumps(BatchedTensors(images)))[1][0].tolist() == [2, 3]


@pytest.mark.parametrize("size", [8, 28])
@pytest.mark.parametrize("model", [SmallCNN, PlainCNN])
def test_the_cnns_take_images_of_both_sizes(model: type[SmallCNN] | type[PlainCNN], size: int) -> None:
    assert model(width=4)(torch.rand(3, 1, size, size)).shape == (3, 10)


def test_an_mlp_has_the_depth_width_norms_and_activations_asked_for() -> None:
    model = MLP(in_features=784, depth=3, width=7, activation="sigmoid", norm=True)
    kinds = [type(module).__name__ for module in model.net]
    assert kinds == ["Flatten", *["Linear", "BatchNorm1d", "Sigmoid"] * 3, "Linear"]
    assert [tuple(m.weight.shape) for m in model.net if isinstance(m, nn.Linear)] == [
        (7, 784),
        (7, 7),
        (7, 7),
        (10, 7),
    ]
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    assert not any(isinstance(m, nn.BatchNorm1d) for m in MLP(norm=False).modules())


def hidden(model: MLP) -> list[nn.Linear]:
    return [module for module in model.net if isinstance(module, nn.Linear)][:-1]


def test_initialisations_are_what_their_names_say_and_leave_the_head_alone() -> None:
    torch.manual_seed(0)
    constant = MLP(init="constant", init_scale=0.25, depth=2)
    assert [layer.weight.unique().tolist() for layer in hidden(constant)] == [[0.25], [0.25]]
    assert [layer.bias.unique().tolist() for layer in hidden(constant)] == [[0.0], [0.0]]
    assert constant.net.head.weight.unique().numel() == 640
    uniform = torch.cat([layer.weight.flatten() for layer in hidden(MLP(init="uniform", init_scale=0.1))])
    assert uniform.abs().max().item() == pytest.approx(0.1, abs=1e-3)
    assert uniform.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.02)
    he = hidden(MLP(init="he", width=256))[1]
    assert he.weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.02)
    assert he.bias.count_nonzero().item() == 0
    cnn = PlainCNN(init="constant", init_scale=0.5)
    assert {c.weight.unique().item() for c in (cnn.conv1, cnn.conv2, cnn.conv3)} == {0.5}
    torch.manual_seed(1)
    default = nn.Linear(64, 64)
    torch.manual_seed(1)
    assert torch.equal(hidden(MLP(init="default"))[0].weight, default.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "swish"}, "`activation` to be one of relu, .*, but got 'swish'"),
        ({"optimizer": "lbfgs"}, "`optimizer` to be one of adam, adamw, sgd, but got 'lbfgs'"),
        ({"init": "zeros"}, "`init` to be one of default, .*, but got 'zeros'"),
        ({"depth": 0}, "`depth` to be a positive int, but got 0"),
    ],
)
def test_options_of_a_model_that_make_no_sense_are_refused_with_their_value(
    options: dict[str, str | int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        MLP(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_the_optimizer_is_the_one_asked_for(name: str, kind: type[torch.optim.Optimizer]) -> None:
    optimizer = SmallCNN(optimizer=name, lr=0.5, weight_decay=0.25, momentum=0.125).configure_optimizers()
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.25)
    if name == "sgd":
        assert group["momentum"] == 0.125


def test_a_trained_small_cnn_reads_digits_and_loads_from_its_checkpoint(tmp_path: Path) -> None:
    L.seed_everything(0, verbose=False)
    model, data = SmallCNN(lr=0.003), DigitsDataModule()
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, default_root_dir=tmp_path, enable_progress_bar=False
    )
    trainer.fit(model, datamodule=data)
    (metrics,) = trainer.test(model, datamodule=data, verbose=False)
    assert metrics["test_accuracy"] > 0.9
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    again = SmallCNN.load_from_checkpoint(checkpoint, **SAFELY)
    assert again.lr == 0.003
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
