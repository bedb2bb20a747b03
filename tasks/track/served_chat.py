"""The chat model as MLflow loads and serves it: models-from-code, so that nothing pickled is ever read."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow.models
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types.type_hints import TypeFromExample

from model.decoding.sampling import CONVERSATION, Sampling

SETTINGS: dict[str, float] = {
    "temperature": CONVERSATION.temperature,
    "min_p": CONVERSATION.min_p,
    "repetition_penalty": CONVERSATION.repetition_penalty,
    "seed": CONVERSATION.seed,
    "max_tokens": 200,
}


class ServedChat(PythonModel):
    """`predict([{"messages": [{"role": "user", "content": "..."}]}])` -> one answer per conversation.

    Answers are given one after the other: MLflow's server calls from several threads, and the model has one cache of
    keys and values.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the weights."""
        from tasks.models.chat import ChatModel  # not at the top: registering a model needs no torch

        self._model = ChatModel.load(Path(context.artifacts["model"]))
        # No RLock: the server fetches the pieces of one stream from whichever thread is free.
        self._turn = threading.Lock()

    def predict(
        self, context: PythonModelContext, model_input: TypeFromExample, params: dict[str, Any] | None = None
    ) -> list[str]:
        """The answers; `params` may hold what SETTINGS has, such as `temperature` (0: the likeliest token)."""
        return ["".join(self._answer(conversation, params or {})) for conversation in _conversations(model_input)]

    def predict_stream(
        self, context: PythonModelContext, model_input: TypeFromExample, params: dict[str, Any] | None = None
    ) -> Iterator[str]:
        """The answer to the first conversation, piece by piece."""
        yield from self._answer(_conversations(model_input)[0], params or {})

    def _answer(self, conversation: Any, params: dict[str, Any]) -> Iterator[str]:
        settings = {**SETTINGS, **params}
        messages = [{"role": str(m["role"]), "content": str(m["content"])} for m in conversation["messages"]]
        sampling = Sampling(
            float(settings["temperature"]),
            min_p=float(settings["min_p"]),
            repetition_penalty=float(settings["repetition_penalty"]),
            seed=int(settings["seed"]),
        )
        with self._turn:
            yield from self._model.stream(messages, sampling, int(settings["max_tokens"]))


def _conversations(model_input: Any) -> list[dict[str, Any]]:
    """MLflow hands over a list of dicts, as in the example, but when streaming one dict, or a data frame of them."""
    if isinstance(model_input, dict):
        return [model_input]
    return list(model_input if isinstance(model_input, list) else model_input.to_dict(orient="records"))


mlflow.models.set_model(ServedChat())
