"""The registered chat model under MLflow's server, which calls it from several threads."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow.pyfunc.model import PythonModelContext

from model.vocabulary.tokenizer import Tokenizer
from tasks.track.served_chat import ServedChat
from tests.helpers.inference import make_model, random_model
from tests.helpers.training import make_tokenizer

CALLERS = 8
ROUNDS = 5  # without the lock each of the first few has wrong answers, or ends the process


@pytest.fixture
def context(tmp_path: Path) -> PythonModelContext:
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    vocab_size = Tokenizer.load(tokenizer.path).vocab_size
    model = make_model(tmp_path / "model", random_model(vocab_size=vocab_size), tokenizer)
    return PythonModelContext({"model": str(model.path)}, None)


def test_callers_at_once_get_the_answers_that_each_gets_alone(context: PythonModelContext) -> None:
    served = ServedChat()
    served.load_context(context)
    questions = [f"What does os.path.join({number}) do?" * (1 + number % 3) for number in range(CALLERS)]

    def predict(question: str) -> list[str]:
        return served.predict(context, [{"messages": [{"role": "user", "content": question}]}], {"max_tokens": 24})

    alone = [predict(question) for question in questions]
    assert len({answer for (answer,) in alone}) > CALLERS / 2, "answers that are all alike would prove nothing"
    for _ in range(ROUNDS):
        with ThreadPoolExecutor(CALLERS) as callers:
            assert list(callers.map(predict, questions)) == alone


def test_a_stream_that_is_left_or_goes_on_in_another_thread_holds_nobody_up(context: PythonModelContext) -> None:
    served = ServedChat()
    served.load_context(context)
    question = [{"messages": [{"role": "user", "content": "What does it do?"}]}]
    (whole,) = served.predict(context, question, {"max_tokens": 8})

    left = served.predict_stream(context, question, {"max_tokens": 8})
    next(left)
    left.close()  # what the server does when a client hangs up
    pieces: list[str] = []
    stream = served.predict_stream(context, question, {"max_tokens": 8})
    for _ in range(2):
        thread = threading.Thread(target=lambda: pieces.append(next(stream)))
        thread.start()
        thread.join()
    assert "".join([*pieces, *stream]) == whole
    assert served.predict(context, question, {"max_tokens": 8}) == [whole]
