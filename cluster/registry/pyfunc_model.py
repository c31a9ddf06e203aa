"""The code inside every registered model (MLflow's "models from code"), beside safetensors and JSON.

MLflow runs this file when it loads a model. `gpt2` comes with the model, so loading needs PyTorch and tokenizers, but
neither this project nor a cluster.
"""

import inspect
import warnings
from typing import Any

import mlflow
from mlflow.pyfunc import PyFuncModel, PythonModel

warnings.filterwarnings("ignore", message=".*Add type hints to the `predict` method")  # the signature is set


class Pulled(PythonModel):
    """MLflow model that calls `predict` of the model."""

    model: Any

    def load_context(self, context):
        from pathlib import Path

        import gpt2

        # This file stays with the version, so it uses only the public `gpt2.load`.
        self.model = gpt2.load(Path(context.artifacts["model"]))

    def predict(self, context, model_input, params=None):
        if hasattr(model_input, "to_dict"):  # a DataFrame: one column is a list of texts, more are records
            if len(model_input.columns) == 1 and model_input.columns[0] in (0, "0", "inputs", "text", "prompt"):
                model_input = model_input.iloc[:, 0].tolist()
            else:
                model_input = model_input.to_dict(orient="records")
        elif hasattr(model_input, "tolist"):
            model_input = model_input.tolist()
        return self.model.predict(model_input, **{**given_params(), **(params or {})})


def given_params() -> dict[str, Any]:
    """Return the `params` that the caller of MLflow's `predict` gave.

    MLflow drops those that the signature lacks before it calls us. So a misspelt one would have no effect, unseen.
    """
    frame = inspect.currentframe()
    while frame := frame and frame.f_back:
        if frame.f_code is PyFuncModel.predict.__code__:
            return frame.f_locals["params"] or {}
    return {}  # called without MLflow's wrapper


mlflow.models.set_model(Pulled())
