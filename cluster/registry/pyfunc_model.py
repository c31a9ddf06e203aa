"""The code inside every registered model ("models from code"): text, with safetensors and JSON beside it.

MLflow runs this file when a model is loaded. `gpt2` comes with the model, so a reader needs PyTorch and
tokenizers but neither this project nor a cluster.
"""

import warnings
from typing import Any

import mlflow
from mlflow.pyfunc import PythonModel

warnings.filterwarnings("ignore", message=".*Add type hints to the `predict` method")  # the signature is given


class Pulled(PythonModel):
    """`predict` of the model."""

    model: Any

    def load_context(self, context):
        from pathlib import Path

        import gpt2

        # This file stays with the version: of `gpt2` it uses nothing that may ever move.
        self.model = gpt2.load(Path(context.artifacts["model"]))

    def predict(self, context, model_input, params=None):
        if hasattr(model_input, "to_dict"):  # a DataFrame: one column is a list of texts, more are records
            if len(model_input.columns) == 1 and model_input.columns[0] in (0, "0", "inputs", "text", "prompt"):
                model_input = model_input.iloc[:, 0].tolist()
            else:
                model_input = model_input.to_dict(orient="records")
        elif hasattr(model_input, "tolist"):
            model_input = model_input.tolist()
        return self.model.predict(model_input, **(params or {}))


mlflow.models.set_model(Pulled())
