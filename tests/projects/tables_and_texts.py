"""Projects of language models, tables, graphs and uncertainty."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from projects.running import given_to_trainer, project

WORDS = 64


@project("transformers BERT, fine-tuned")
def _bert() -> tuple[Any, Any]:
    library = import_module("transformers")

    class Glue(lightning.LightningModule):
        """As in Lightning's tutorial on text transformers."""

        def __init__(self) -> None:
            super().__init__()
            settings = library.BertConfig(
                vocab_size=WORDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
            )
            self.model = library.BertForSequenceClassification(settings)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss: Tensor = self.model(**batch).loss
            return loss

        def configure_optimizers(self) -> Any:
            plain = [p for n, p in self.named_parameters() if "bias" in n or "LayerNorm" in n]
            others = [p for n, p in self.named_parameters() if "bias" not in n and "LayerNorm" not in n]
            groups = [{"params": others, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
            optimizer = torch.optim.AdamW(groups, lr=2e-4)
            schedule = library.get_linear_schedule_with_warmup(optimizer, 2, 8)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    batches = [{"input_ids": torch.randint(WORDS, (4, 12)), "labels": torch.randint(2, (4,))} for _ in range(4)]
    return Glue(), batches


@project("LitGPT")
def _litgpt() -> tuple[Any, Any]:
    library = import_module("litgpt.model")
    utils = import_module("litgpt.utils")
    settings = import_module("litgpt.config").Config(
        block_size=16,
        n_layer=2,
        n_embd=32,
        n_head=4,
        padded_vocab_size=WORDS,
        intermediate_size=64,
        mlp_class_name="LLaMAMLP",
        norm_class_name="RMSNorm",
        bias=False,
        n_query_groups=2,
    )

    class Pretraining(lightning.LightningModule):
        """As in that project's tutorial on Lightning's Trainer."""

        def __init__(self) -> None:
            super().__init__()
            self.model = library.GPT(settings)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss: Tensor = utils.chunked_cross_entropy(self.model(batch[:, :-1]), batch[:, 1:])
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), 2e-4, betas=(0.9, 0.95), weight_decay=0.1)

    return Pretraining(), [torch.randint(WORDS, (2, 12)) for _ in range(4)]


def _frame(rows: int = 64) -> Any:
    pandas = import_module("pandas")
    values = np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)
    frame = pandas.DataFrame(values, columns=list("abcd"))
    frame["kind"] = np.where(values[:, 0] > 0, "left", "right")
    frame["target"] = (values[:, 1] + values[:, 2] > 0).astype(int)
    return frame


def _tabular(settings: Any) -> tuple[Any, Any]:
    library, config = import_module("pytorch_tabular"), import_module("pytorch_tabular.config")
    without = {"checkpoints": None, "early_stopping": None, "load_best": False, "progress_bar": "none"}
    model = library.TabularModel(
        data_config=config.DataConfig(target=["target"], continuous_cols=list("abcd"), categorical_cols=["kind"]),
        model_config=settings,
        optimizer_config=config.OptimizerConfig(),
        trainer_config=config.TrainerConfig(batch_size=16, max_epochs=2, accelerator="cpu", **without),
        verbose=False,
    )
    return given_to_trainer(lambda: model.fit(train=_frame(), validation=_frame(16)))


@project("pytorch-tabular category embeddings")
def _embeddings() -> tuple[Any, Any]:
    kind = import_module("pytorch_tabular.models").CategoryEmbeddingModelConfig
    return _tabular(kind(task="classification", layers="32-16", use_batch_norm=True, dropout=0.1))


@project("pytorch-tabular GANDALF")
def _gandalf() -> tuple[Any, Any]:
    return _tabular(import_module("pytorch_tabular.models").GANDALFConfig(task="classification", gflu_stages=2))


@project("deeptab FT-transformer", trainer={"limit_val_batches": 1})
def _deeptab() -> tuple[Any, Any]:
    settings = import_module("deeptab.configs")
    model = import_module("deeptab.models").FTTransformerClassifier(
        model_config=settings.FTTransformerConfig(d_model=16, n_layers=2, n_heads=2),
        trainer_config=settings.TrainerConfig(max_epochs=2, batch_size=16),
    )
    frame = _frame()
    return given_to_trainer(lambda: model.fit(frame.drop(columns="target"), frame["target"].to_numpy()))


@project("torch_geometric GraphSAGE")
def _geometric() -> tuple[Any, Any]:
    library = import_module("torch_geometric")

    class Nodes(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.gnn = import_module("torch_geometric.nn").GraphSAGE(8, 16, 2, 3, dropout=0.5, norm="batch_norm")

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.gnn(batch.x, batch.edge_index), batch.y)

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.01, weight_decay=5e-4)

    kind = library.data.Data
    return Nodes(), [
        kind(x=torch.randn(20, 8), edge_index=torch.randint(20, (2, 60)), y=torch.randint(3, (20,))) for _ in range(4)
    ]


@project("lightning-uq-box variational inference")
def _uq() -> tuple[Any, Any]:
    net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    module = import_module("lightning_uq_box.uq_methods").BNN_VI_ELBO_Regression(
        net,
        burnin_epochs=1,
        num_mc_samples_train=2,
        optimizer=partial(torch.optim.Adam, lr=1e-3),
        criterion=import_module("lightning_uq_box.uq_methods.loss_functions").NLL(),
    )

    class Points(lightning.LightningDataModule):
        points: Any = [{"input": torch.randn(4), "target": torch.randn(1)} for _ in range(64)]

        def train_dataloader(self) -> Any:
            return DataLoader(self.points, batch_size=16)

    return module, Points()
