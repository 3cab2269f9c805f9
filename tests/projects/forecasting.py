"""Projects that forecast time series."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from projects.running import first, given_to_trainer, project

LENGTH = 60


def _waves(count: int) -> Any:
    """A frame of `count` series, a row a day: ``unique_id``, ``ds``, ``y``, ``step``."""
    pandas = import_module("pandas")
    days = np.arange(LENGTH)
    return pandas.concat(
        pandas.DataFrame(
            {
                "unique_id": f"series {i}",
                "ds": pandas.date_range("2020-01-01", periods=LENGTH),
                "step": days,
                "y": (np.sin(days / (3 + i)) + 0.1 * np.cos(7.0 * days) + i).astype(np.float32),
            }
        )
        for i in range(count)
    ).reset_index(drop=True)


def _dataset() -> Any:
    library = import_module("pytorch_forecasting")
    return library.TimeSeriesDataSet(
        _waves(4),
        time_idx="step",
        target="y",
        group_ids=["unique_id"],
        max_encoder_length=12,
        max_prediction_length=4,
        time_varying_unknown_reals=["y"],
        time_varying_known_reals=["step"],
        static_categoricals=["unique_id"],
        add_relative_time_idx=True,
        target_normalizer=library.GroupNormalizer(groups=["unique_id"]),
    )


@project("pytorch-forecasting TemporalFusionTransformer", trainer={"gradient_clip_val": 0.1})
def _fusion() -> tuple[Any, Any]:
    data = _dataset()
    kind = import_module("pytorch_forecasting").TemporalFusionTransformer
    module = kind.from_dataset(data, hidden_size=8, attention_head_size=2, hidden_continuous_size=4, dropout=0.1)
    return module, first(data.to_dataloader(train=True, batch_size=16, num_workers=0))


@project("pytorch-forecasting DeepAR")
def _deepar() -> tuple[Any, Any]:
    library = import_module("pytorch_forecasting")
    data = library.TimeSeriesDataSet(
        _waves(4),
        time_idx="step",
        target="y",
        group_ids=["unique_id"],
        max_encoder_length=12,
        max_prediction_length=4,
        time_varying_unknown_reals=["y"],
        target_normalizer=library.GroupNormalizer(groups=["unique_id"]),
    )
    module = library.DeepAR.from_dataset(data, hidden_size=8, rnn_layers=2)
    return module, first(data.to_dataloader(train=True, batch_size=16, num_workers=0))


@project("darts TCNModel")
def _tcn() -> tuple[Any, Any]:
    kind = import_module("darts.models.forecasting.tcn_model").TCNModel
    return _darts(kind(input_chunk_length=12, output_chunk_length=4, num_filters=8, batch_size=16))


@project("darts NBEATSModel")
def _nbeats() -> tuple[Any, Any]:
    kind = import_module("darts.models.forecasting.nbeats").NBEATSModel
    return _darts(kind(12, 4, num_stacks=2, num_blocks=1, num_layers=2, layer_widths=16, batch_size=16))


def _darts(model: Any) -> tuple[Any, Any]:
    series = import_module("darts").TimeSeries.from_values(_waves(1)["y"].to_numpy())
    return given_to_trainer(lambda: model.fit(series))


@project("neuralforecast NHITS")
def _nhits() -> tuple[Any, Any]:
    return _neural(import_module("neuralforecast.models").NHITS, mlp_units=3 * [[16, 16]])


@project("neuralforecast LSTM", expected={"dead_channels": "5 of 8 units of its decoder never fire on the few windows"})
def _lstm() -> tuple[Any, Any]:
    return _neural(import_module("neuralforecast.models").LSTM, encoder_hidden_size=8, decoder_hidden_size=8)


def _neural(kind: Any, **widths: Any) -> tuple[Any, Any]:
    model = kind(h=4, input_size=12, max_steps=8, batch_size=2, windows_batch_size=8, **widths)
    data = import_module("neuralforecast.tsdataset").TimeSeriesDataset.from_df(_waves(4)[["unique_id", "ds", "y"]])[0]
    return given_to_trainer(lambda: model.fit(data))


@project("gluonts DeepAR", trainer={"limit_val_batches": 1})
def _gluon_deepar() -> tuple[Any, Any]:
    return _gluon(import_module("gluonts.torch").DeepAREstimator, freq="D", hidden_size=8)


@project("gluonts SimpleFeedForward", trainer={"limit_val_batches": 1})
def _gluon_feed_forward() -> tuple[Any, Any]:
    return _gluon(import_module("gluonts.torch").SimpleFeedForwardEstimator, hidden_dimensions=[16, 16])


def _gluon(kind: Any, **settings: Any) -> tuple[Any, Any]:
    estimator = kind(prediction_length=4, batch_size=8, num_batches_per_epoch=4, **settings)
    data = import_module("gluonts.dataset.pandas").PandasDataset.from_long_dataframe(
        _waves(4).set_index("ds"), target="y", item_id="unique_id", freq="D"
    )
    return given_to_trainer(lambda: estimator.train(data))
