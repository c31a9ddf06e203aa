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
    """`predict` of the task's predictor."""

    predictor: Any

    def load_context(self, context):
        import json
        from pathlib import Path

        directory = Path(context.artifacts["model"])
        name = json.loads((directory / "task.json").read_text())["task"]
        if name == "base":
            from gpt2.language_model import GeneratorPredictor

            self.predictor = GeneratorPredictor(directory)
        else:
            from gpt2.task import task

            self.predictor = task(name).predictor(directory)

    def predict(self, context, model_input, params=None):
        if hasattr(model_input, "to_dict"):  # a DataFrame: one column is a list of texts, more are records
            if len(model_input.columns) == 1 and model_input.columns[0] in (0, "0", "inputs", "text", "prompt"):
                model_input = model_input.iloc[:, 0].tolist()
            else:
                model_input = model_input.to_dict(orient="records")
        elif hasattr(model_input, "tolist"):
            model_input = model_input.tolist()
        return self.predictor.predict(model_input, params or {})


mlflow.models.set_model(Pulled())
