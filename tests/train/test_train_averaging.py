import pytest
import torch
from torch import nn

from pgolf.train.averaging import EMA


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9965, 1.0])
def test_equals_the_closed_form(decay):
    """e_n = beta^n p_0 + (1 - beta) sum of beta^(n - k) p_k, started at the initial weights, no bias correction."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1, bias=False))
    ema = EMA(model, decay)
    history = [{name: value.detach().clone() for name, value in model.named_parameters()}]
    for _ in range(12):
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter))
        ema.update()
        history.append({name: value.detach().clone() for name, value in model.named_parameters()})
    n = len(history) - 1
    assert ema.state().keys() == history[0].keys()
    for name, average in ema.state().items():
        expected = decay**n * history[0][name].double()
        for k in range(1, n + 1):
            expected += (1 - decay) * decay ** (n - k) * history[k][name].double()
        torch.testing.assert_close(average.double(), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(model.get_parameter(name), history[-1][name])  # the live weights are not touched
    ema.apply()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, ema.state()[name])


def test_average_is_float32_and_applies_in_the_dtype_of_the_weights():
    model = nn.Linear(2, 2).bfloat16()
    ema = EMA(model, 0.5)
    assert {tensor.dtype for tensor in ema.state().values()} == {torch.float32}
    ema.apply()
    assert model.weight.dtype == torch.bfloat16


def test_average_does_not_share_memory_with_the_weights():
    model = nn.Linear(2, 2)
    ema = EMA(model, 0.9)
    before = ema.state()["weight"].clone()
    model.weight.data.add_(1)
    assert torch.equal(ema.state()["weight"], before)
