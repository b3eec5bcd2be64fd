"""Kernels that are missing: left out and compiled by other processes, of one pass through the model."""

import contextlib
import dataclasses
import sys
import types

import interpreter  # noqa: F401  before the kernels are defined
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

import test_kernel_block as blocks
import test_kernel_switch as switch

from pgolf.kernels import elements, epilogue
from pgolf.kernels import stream_products as products
from pgolf.train import fast, precompile

INTERPRETED = pytest.mark.skipif(switch.ON_GPU, reason="the interpreter runs without a GPU")


class Pending(BaseException):
    def __init__(self, sha):
        self.sha = sha


class Pool:
    """Says `pending` of a kernel so many times."""

    def __init__(self, rounds):
        self.rounds, self.left, self.jobs, self.ended, self.alone = rounds, {}, 0, 0, False

    def activate(self, jobs):
        self.jobs = jobs
        return self

    def deactivate(self):
        self.ended += 1

    @contextlib.contextmanager
    def suppressed(self):
        self.alone = True
        yield
        self.alone = False

    def poll(self, sha):
        self.left[sha] = self.left.get(sha, self.rounds) - 1
        return ("pending" if self.left[sha] > 0 else "done"), None


@pytest.fixture
def pool(monkeypatch):
    found = Pool(rounds=3)
    module = types.ModuleType("quack.cache.async_compile")
    module.CompilePending, module.activate, module.deactivate = Pending, found.activate, found.deactivate
    module.suppress_pool = found.suppressed
    package = types.ModuleType("quack.cache")
    package.async_compile = module
    for name, each in {"quack": types.ModuleType("quack"), "quack.cache": package, module.__name__: module}.items():
        monkeypatch.setitem(sys.modules, name, each)
    return found


def missing(sha):
    raise Pending(sha)


def test_what_is_missing_is_left_out_and_waited_for(pool):
    there = []
    with epilogue.compiled_aside():
        epilogue.launch(missing, "a")
        epilogue.launch(there.append, 1)
        epilogue.launch(missing, "b")
        assert not pool.left
    assert there == [1]
    assert max(pool.left["a"], pool.left["b"]) <= 0, "it was not waited for"
    assert 1 <= pool.jobs <= epilogue.PROCESSES
    assert pool.ended == 1
    with pytest.raises(Pending):
        epilogue.launch(missing, "c")


def test_an_error_ends_it(pool):
    with pytest.raises(ZeroDivisionError), epilogue.compiled_aside():
        epilogue.launch(lambda: 1 / 0)
    assert pool.ended == 1
    assert epilogue._left_out is None


def test_patience_ends(pool, monkeypatch):
    pool.rounds = 10**9
    monkeypatch.setattr(epilogue, "PATIENCE", 0.1)
    with epilogue.compiled_aside():
        epilogue.launch(missing, "a")
    assert pool.ended == 1


def test_an_older_package_compiles_when_called(pool, monkeypatch):
    monkeypatch.delattr(sys.modules["quack.cache"], "async_compile")
    monkeypatch.delitem(sys.modules, "quack.cache.async_compile")
    with pytest.warns(UserWarning, match="one after another"), epilogue.compiled_aside(), pytest.raises(Pending):
        epilogue.launch(missing, "a")
    assert pool.ended == 0


def test_no_processes_compile_when_called(pool, monkeypatch):
    def refuse(jobs):
        raise AssertionError("daemonic processes are not allowed to have children")

    monkeypatch.setattr(sys.modules["quack.cache.async_compile"], "activate", refuse)
    there = []
    with pytest.warns(UserWarning, match="daemonic"), epilogue.compiled_aside():
        epilogue.launch(there.append, 1)
    assert there == [1]


def test_a_pool_that_breaks_leaves_kernels_to_this_process(pool):
    there = []

    def compiled(x):
        if not pool.alone:
            raise RuntimeError("a process in the pool was terminated abruptly")
        there.append(x)

    with epilogue.compiled_aside():
        epilogue.launch(compiled, 1)
    assert there == [1]
    assert pool.ended == 1


def test_ranks_of_a_machine_share_its_processes(pool, monkeypatch):
    monkeypatch.setattr(epilogue.os, "sched_getaffinity", lambda _: range(64))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with epilogue.compiled_aside():
        pass
    assert pool.jobs == epilogue.PROCESSES // 4


@INTERPRETED
@pytest.mark.parametrize("batches", ["packed", "rows"])
def test_a_pass_for_the_kernels_leaves_nothing_behind(batches, monkeypatch):
    """All numbers of repeats are run; no gradient, no random number, no other state of the model is different after."""
    entered = []

    @contextlib.contextmanager
    def aside():
        entered.append(1)
        yield

    monkeypatch.setattr(precompile, "compiled_aside", aside)
    looped = {"layers": 4, "loop_start": 1, "loop_end": 2, "loop_runs": 2}
    expected = switch.gradients(switch.build(**looped))
    model = switch.build(**looped)
    fast.hide(model)
    losses, seen = model.losses, []
    monkeypatch.setattr(model, "losses", lambda *given: (seen.append(model.runs), losses(*given))[1], raising=False)
    random = torch.get_rng_state()
    tokens = {"micro_tokens": switch.LENGTH, "batch_tokens": switch.LENGTH, "seq_len": switch.LENGTH}
    config = dataclasses.replace(switch.TRAIN, batches=batches, **tokens)
    precompile.precompile(model, config)
    assert (entered, seen) == ([1], [1, 2])
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())
    switch.assert_alike(switch.gradients(model), expected)


@INTERPRETED
def test_products_that_are_left_out_leave_nothing_behind(monkeypatch):
    """All of them: what they would write is whatever memory holds, here no numbers, and lanes and skips read it."""
    monkeypatch.setattr(epilogue, "present", lambda: True)
    monkeypatch.setattr(elements, "PLACE", 0)
    monkeypatch.setattr(precompile, "compiled_aside", contextlib.nullcontext)
    expected = blocks.gradients(blocks.build(length=32))
    model, seen = blocks.build(length=32), []
    fast.hide(model)
    found = epilogue.Product._by_tensors

    def left_out(product, a, b, out, c, operands):
        sums = found(product, a, b, out, c, operands)
        for tensor in (out, *(operands[name] for name in product.also), *sums.values()):
            tensor.fill_(torch.nan)
        seen.append(product)
        return sums

    with monkeypatch.context() as aside:
        aside.setattr(epilogue.Product, "_by_tensors", left_out)
        precompile.precompile(model, dataclasses.replace(switch.TRAIN, batches="packed"))
    assert {products.past_mix_of_first, products.past_mix_of_lane_and_skip} <= set(seen)
    assert all(parameter.grad is None for parameter in model.parameters())
    blocks.assert_alike(blocks.gradients(model), expected)


def _tripled(acc):
    return {"D": acc * 3.0}


@pytest.mark.gpu
def test_other_processes_compile(tmp_path, monkeypatch):
    if not epilogue.present():
        pytest.skip("such products take a Hopper GPU and quack-kernels")
    pytest.importorskip("cloudpickle", reason="without it kernels are compiled one after another")
    import quack.cache

    monkeypatch.setattr(quack.cache, "CACHE_DIR", str(tmp_path))
    product = epilogue.Product(_tripled)
    a, b = (torch.randn(512, 256, device="cuda").bfloat16() for _ in range(2))
    out = torch.full((512, 512), -1.0, device="cuda", dtype=torch.bfloat16)
    with epilogue.compiled_aside():
        product(a, b, out)
        assert (out == -1).all(), "it was not left out"
    assert list(tmp_path.rglob("*.o"))
    product(a, b, out)
    torch.testing.assert_close(out.float(), 3 * a.float() @ b.float().T, rtol=2e-2, atol=0.5)
