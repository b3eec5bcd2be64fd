"""The update of the shared weights between phases (PR 1855): one pass of SGD over documents that are scored.

The spans of the documents, each with the BOS of the next, are joined to one text of N targets and cut into G chunks of
K. Each chunk but the last: rows of L, attention cut at every BOS, mean loss, gradient clipped, fresh SGD with momentum
at

    lr_c = lr/2 (1 + cos(pi c / (G - 1)))

Later phases train on the documents of earlier ones once more. `evaluate.chunk` has the settings; PR 1855: rate 0.001,
one epoch.
"""

import numpy as np
from numpy.typing import NDArray

from pgolf.evaluate.chunk_ttt import Learner, learning_rate, rows_of
from pgolf.evaluate.config import EvaluateConfig
from pgolf.evaluate.documents import Documents
from pgolf.model.gpt import GPT


def learn_shared(model: GPT, tokens: NDArray[np.uint16], documents: Documents, config: EvaluateConfig) -> int:
    """Train the model on scored documents of a stream [n]; returns the number of steps."""
    settings, length = config.chunk, config.seq_len
    spans = zip(documents.start.tolist(), documents.targets.tolist(), strict=True)
    text = np.concatenate([tokens[start : start + targets + 1] for start, targets in spans])
    trained = -(-(len(text) - 1) // settings.chunk_tokens) - 1
    if settings.max_train_chunks is not None:
        trained = min(trained, settings.max_train_chunks)
    learner, steps = Learner(model, settings, max(config.batch_tokens // length, 1), isolate_documents=True), 0
    for chunk in range(trained):
        rows = rows_of(text, chunk * settings.chunk_tokens, settings.chunk_tokens // length, length)
        steps += learner.train(rows, learning_rate(settings, chunk, trained), settings.epochs)
    return steps
