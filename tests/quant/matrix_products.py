"""Every matrix product of a model, as it happens."""

import contextlib

import torch.nn.functional as F


@contextlib.contextmanager
def seen(model, monkeypatch, see):
    """Inside, `see(name, x, y)` is told of every y = x W^T with a parameter W of the model, by its name."""
    names = {parameter.data_ptr(): name for name, parameter in model.named_parameters()}
    plain = F.linear

    def spy(x, weight, *rest):
        y = plain(x, weight, *rest)
        see(names.get(weight.data_ptr()), x, y)
        return y

    with monkeypatch.context() as patch:
        patch.setattr(F, "linear", spy)
        yield
