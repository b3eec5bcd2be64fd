"""Models and streams of documents for the tests of adaptation, and slow twins of what they test."""

import copy
import math

import numpy as np
import torch

from pgolf.evaluate.config import EvaluateConfig, LoRAConfig, PhasesConfig
from pgolf.evaluate.document_ttt import document_ttt
from pgolf.evaluate.windows import Windows
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT

VOCAB, LENGTH, CHUNK = 24, 16, 4


def tiny_model(seed=0, std=0.3, dtype=torch.float32, **options):
    torch.manual_seed(seed)
    shape = {
        "layers": 3, "dim": 16, "heads": 2, "kv_heads": 1, "mlp_mult": 2.0, "rope_dims": 4, "xsa_layers": 2,
        "parallel": "lanes", "parallel_from": 2, "loop_start": 1, "loop_end": 1, "loop_runs": 2, "attn_gate": "sparse",
        "gate_window": 4, "smear": "window",
    }  # fmt: skip
    model = GPT(ModelConfig(**(shape | options)), VOCAB, dtype).to(dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model


def stream_of(*targets, seed=0):
    """Documents with so many targets each."""
    generator = np.random.default_rng(seed)
    parts = [np.append(1, generator.integers(2, VOCAB, length - 1)) for length in targets]
    return np.concatenate([*parts, [1]]).astype(np.uint16)


def replaced(tokens, span):
    """The same with other tokens in `span`, none of which begins a document."""
    changed = tokens.copy()
    changed[span] = (changed[span] - 2 + 7) % (VOCAB - 2) + 2
    return changed


def assert_no_token_reaches_back(model, targets, config, cut):
    """Other tokens behind target `cut` of one document leave the losses before it as they are, bit for bit."""
    tokens = stream_of(targets)
    changed = replaced(tokens, slice(cut + 1, targets))
    changed[targets] = 5  # the last target
    before, after = document_ttt(model, tokens, config)[0], document_ttt(model, changed, config)[0]
    assert np.array_equal(before[:cut].view(np.uint32), after[:cut].view(np.uint32))
    assert before[cut] != after[cut], "the first changed token is target `cut`"


def settings_of(ttt="lora", batch_tokens=256, phases=None, chunk=None, seconds=None, stride=LENGTH, **lora):
    defaults = {"rank": 3, "alpha": 5.0, "lr": 0.02, "chunk_tokens": CHUNK, "documents": 2}
    extra = {} if chunk is None else {"chunk": chunk}
    return EvaluateConfig(
        seq_len=LENGTH, stride=stride, isolate_documents=True, batch_tokens=batch_tokens, ttt=ttt,
        lora=LoRAConfig(**(defaults | lora)), phases=phases or PhasesConfig(), seconds=seconds, **extra,
    )  # fmt: skip


def chunk_windows(documents, chunk=CHUNK, length=LENGTH):
    """The window of every chunk of every document."""
    windows = []
    for start, targets in zip(*documents, strict=True):
        for position in range(0, targets, chunk):
            end = min(position + chunk, targets)
            windows.append((start + max(end - length, 0), start + end, start + position))
    return Windows(*np.array(sorted(windows, key=lambda w: w[2])).T)


class SlowLoRA(torch.nn.Module):
    """The published form in plain loops, for one batch: every row padded, torch's own AdamW, all targets charged.

    Adapters are hooks on the model's modules, applied row by row; repeated layers are told apart by counting calls.
    """

    def __init__(self, model, config, weights):
        super().__init__()
        self.model, self.config, lora = copy.deepcopy(model), config, config.lora
        self.weights = [torch.nn.Parameter(weight.clone()) for weight in weights]
        self.adapters = dict(zip(lora.maps, zip(self.weights[::2], self.weights[1::2], strict=True), strict=True))
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=lora.lr, betas=(lora.beta1, lora.beta2), eps=lora.eps, weight_decay=lora.weight_decay
        )
        self.order = [*model.wirings[model.runs].encoder, *model.wirings[model.runs].decoder]
        self.inputs = {}
        for block in self.model.blocks:
            for name, module in (("q", block.attn.c_q), ("k", block.attn.c_k), ("v", block.attn.c_v)):
                module.register_forward_hook(lambda m, x, y, name=name: y + self.delta(name, x[0]))
            block.attn.register_forward_pre_hook(lambda m, x: self.inputs.update(n=x[0]))
            block.attn.register_forward_hook(lambda m, x, y: y + self.delta("o", x[0]))
            block.mlp.register_forward_hook(lambda m, x, y: y + self.delta("mlp", x[0]))

    def delta(self, name, x):
        """One call of each map per virtual layer, in order."""
        if name not in self.adapters:
            return 0
        a, b = self.adapters[name]
        place = self.calls.get(name, 0)
        self.calls[name] = place + 1
        scale = self.config.lora.alpha / self.config.lora.rank
        return torch.stack([scale * (row @ a[i, place].T @ b[i, place].T) for i, row in enumerate(x)])

    def losses(self, ids, targets):
        self.calls = {}
        hidden = self.model.hidden(ids)
        assert set(self.calls.values()) <= {len(self.order)}
        logits = hidden @ self.model.tok_emb.weight.T
        self.calls = {}
        cap = self.model.config.softcap
        logits = cap * torch.tanh((logits + self.delta("head", hidden)) / cap)
        return -torch.log_softmax(logits, -1).gather(-1, targets[..., None])[..., 0]

    def run(self, tokens, documents, out):
        """Score one batch; `out` gets the losses by place in the stream."""
        chunk, length = self.config.lora.chunk_tokens, self.config.seq_len
        chunks = [math.ceil(targets / chunk) for targets in documents.targets]
        self.model.prepare(length)
        for c in range(max(chunks)):
            width = min((c + 1) * chunk, length)
            x = torch.zeros(len(chunks), width, dtype=torch.long)
            y, at = torch.zeros_like(x), {}
            for i, (start, targets) in enumerate(zip(*documents, strict=True)):
                if c < chunks[i]:
                    end = min((c + 1) * chunk, targets)
                    first = max(0, end - length)
                    span = tokens[start + first : start + end + 1].astype(np.int64)
                    x[i, : end - first], y[i, : end - first] = torch.tensor(span[:-1]), torch.tensor(span[1:])
                    at[i] = (c * chunk - first, end - c * chunk)
            found = self.losses(x, y)
            for i, (offset, size) in at.items():
                place = documents.start[i] + c * chunk
                out[place : place + size] = found[i, offset : offset + size].detach().numpy()
            later = [i for i in at if c < chunks[i] - 1]
            if later:
                loss = sum(found[i, at[i][0] : at[i][0] + chunk].mean() for i in later)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
        return [weight.detach().clone() for weight in self.weights]
