"""No host synchronization, no stray tensor in the step; types never below float32 where sums are made.

A `meta` tensor has no entries: reading one (`.item()`, `if tensor`), and mixing it with a tensor of another
device, raises. A step that passes there runs without waiting for an accelerator.
"""

import pytest
import torch

import constrain as cn
from constrain import E

without_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
DEVICES = ["cpu", "meta", pytest.param("cuda", marks=[pytest.mark.cuda, without_gpu])]


def step(lagrangian, module, size=32):
    """One step of training: forward, backward, optimizer, bounds, multipliers."""
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    device = lagrangian.evaluator.device
    index = {data.name: torch.arange(size, device=device) for data in lagrangian.evaluator.populations}
    for _ in range(2):
        optimizer.zero_grad()
        loss = lagrangian(index)
        loss.backward()
        optimizer.step()
        lagrangian.evaluator.decisions.project()
        lagrangian.ascend()
    return loss


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_stays_on_the_device(kit, name, device):
    module = kit.network(torch.float32)
    problem = kit.spec(name, module, kit.sample(dtype=torch.float32))
    lagrangian = problem.compile(device=device)
    loss = step(lagrangian, module)
    assert loss.device.type == device
    assert loss.shape == ()
    for key, value in lagrangian.state_dict().items():
        assert value.device.type == device, key
    for population in lagrangian.evaluator.populations.values():
        assert all(c.device.type == device for c in population.columns.values())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_variables_bounds_and_parameters_stay_on_the_device(kit, device, gain):
    D = kit.sample(dtype=torch.float32)
    module = kit.network(torch.float32)
    f, w, limit = cn.Model(module, "f"), cn.Variable(3, "w", bounds=(-1.0, 1.0)), cn.Parameter("limit", 0.3)
    score = f(D.x) + D.x @ w
    problem = cn.minimize(E(kit.loss(score, D.y))).subject_to(
        c=cn.between(-limit, E(score), limit), d=cn.sum(w) == 0.5
    )
    lagrangian = problem.compile(device=device, gain=gain)
    assert step(lagrangian, module).device.type == device
    lagrangian.evaluator.set_parameters({"limit": 0.1})
    assert step(lagrangian, module).device.type == device


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_multipliers_and_moments_under_autocast(kit, name, device, kind):
    module = kit.network(torch.float32)
    lagrangian = kit.spec(name, module, kit.sample(dtype=torch.float32)).compile(device=device)
    seen = []
    original = lagrangian.evaluator.reduce_all
    lagrangian.evaluator.reduce_all = lambda *args, **more: (
        seen.extend(found := original(*args, **more)) or found
    )
    with torch.autocast(
        device if device != "meta" else "cpu", dtype=torch.bfloat16, enabled=kind != torch.float32
    ):
        step(lagrangian, module)
    assert seen
    assert all(moment.dtype == torch.float32 for moment in seen)
    assert all(v.dtype == torch.float32 for v in lagrangian.state_dict().values())
    assert all(p.dtype == torch.float32 for p in module.parameters())


def test_a_model_in_half_precision_has_float32_multipliers_and_moments(kit):
    module = kit.network(torch.bfloat16)
    D = kit.sample(dtype=torch.float32)
    lagrangian = kit.spec("by group", module, D).compile()
    assert torch.isfinite(step(lagrangian, module))
    assert all(v.dtype == torch.float32 for v in lagrangian.state_dict().values())
    estimate = lagrangian.estimate({"sample": torch.arange(64)})
    assert all(r.dtype == torch.float32 for r in estimate.exact.residuals)


def test_full_data_moments_are_summed_in_float64(kit):
    compiled = kit.compiled(
        kit.spec("affine", kit.network(torch.float32), dtype=torch.float32), torch.float32
    )
    assert all(m.dtype == torch.float64 for m in compiled.evaluator.moments())


@pytest.mark.parametrize("method", ["cvxpy", "augmented"])
def test_a_float32_model_comes_back_in_float32(kit, method):
    D = kit.sample(dtype=torch.float32)
    module = torch.nn.Linear(3, 1)
    parameters = list(module.parameters())
    f = cn.Model(module, "f")
    problem = cn.minimize(E((f(D.x).reshape(()) - D.y) ** 2)).subject_to(c=E(f(D.x).reshape(())) <= 0.2)
    problem.solve(method, progress=False)
    assert [p is q for p, q in zip(parameters, module.parameters(), strict=True)] == [True, True]
    assert all(p.dtype == torch.float32 for p in module.parameters())
    with torch.no_grad():
        assert float(module(D.values("x")).mean()) == pytest.approx(0.2, abs=1e-5)
