"""The chat model as MLflow loads and serves it: models-from-code, so that nothing pickled is ever read."""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow.models
from mlflow.pyfunc.model import PythonModel, PythonModelContext

# MLflow reads the type hint of `model_input` as a schema and warns where there is none; our signature is explicit.
warnings.filterwarnings("ignore", message=".*Add type hints to the `predict` method")


class ServedChat(PythonModel):
    """Answers `{"messages": [{"role": "user", "content": ...}]}`, one text per conversation."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the weights."""
        from tasks.chat import ChatModel

        self._model = ChatModel.load(Path(context.artifacts["model"]))

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """The answers. `model_input` is a data frame with a column `messages`, one conversation a row."""
        return ["".join(self._answer(messages, params)) for messages in model_input["messages"]]

    def predict_stream(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """The answer to the first conversation, piece by piece."""
        yield from self._answer(model_input["messages"][0], params)

    def _answer(self, messages: Any, params: Mapping[str, Any] | None) -> Iterator[str]:
        settings = dict(params or {})
        conversation = [{"role": str(m["role"]), "content": str(m["content"])} for m in messages]
        yield from self._model.stream(
            conversation,
            temperature=float(settings.get("temperature", 0.0)),
            max_tokens=int(settings.get("max_tokens", 200)),
        )


mlflow.models.set_model(ServedChat())
