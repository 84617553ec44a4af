"""Muon against PyTorch's own, and its place beside AdamW."""

from __future__ import annotations

import copy

import torch
from tiny_decoder import language_model, router
from torch import nn

from textmill.config.sections.train import OptimizerConfig
from textmill.training.muon import ORTHOGONAL, Muon, orthogonalise
from textmill.training.optimizer import base_learning_rate, build_optimizer, parameter_groups, schedule_factor


def matrices(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in shapes]


def test_steps_equal_those_of_torch() -> None:
    ours = matrices((24, 24), (48, 24), (24, 48), (24, 24))
    theirs = [nn.Parameter(one.detach().clone()) for one in ours]
    mine = Muon([{"params": ours, ORTHOGONAL: True}], lr=0.02, weight_decay=0.1)
    other = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for one, two in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            two.grad = one.grad.clone()
        mine.step()
        other.step()
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)  # bfloat16 rounds products of other shapes otherwise


def test_a_stack_of_matrices_steps_like_its_members() -> None:
    (stack,) = matrices((3, 16, 8))
    members = [nn.Parameter(one.clone()) for one in stack.detach()]
    stack.grad = torch.randn_like(stack)
    for one, gradient in zip(members, stack.grad, strict=True):
        one.grad = gradient.clone()
    Muon([{"params": [stack], ORTHOGONAL: True}]).step()
    Muon([{"params": members, ORTHOGONAL: True}]).step()
    torch.testing.assert_close(stack.detach(), torch.stack([one.detach() for one in members]))


def test_updates_are_nearly_orthogonal() -> None:
    (tall,) = matrices((1, 40, 16))
    values = torch.linalg.svdvals(orthogonalise(tall.detach()).float())
    assert float(values.min()) > 0.6 and float(values.max()) < 1.3


def test_the_other_groups_step_like_adamw() -> None:
    ours, theirs = matrices((5, 4), (4,)), matrices((5, 4), (4,))
    mine = Muon([{"params": ours}], lr=0.1, betas=(0.9, 0.95), weight_decay=0.3)
    other = torch.optim.AdamW(theirs, lr=0.1, betas=(0.9, 0.95), weight_decay=0.3, fused=True)
    for one, two in zip(ours, theirs, strict=True):
        one.grad = torch.ones_like(one)
        two.grad = torch.ones_like(two)
    mine.step()
    other.step()
    torch.testing.assert_close(ours, theirs)


def test_a_restored_state_goes_on_as_before() -> None:
    config = OptimizerConfig(name="muon", learning_rate=0.01)
    model = language_model()
    twin = copy.deepcopy(model)
    first, second = build_optimizer(model, config), build_optimizer(twin, config)

    def step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        network(torch.arange(12)[None])["logits"].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    step(model, first)
    twin.load_state_dict(model.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    step(model, first)
    step(twin, second)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), twin.parameters(), strict=True))


def test_muon_takes_the_matrices_of_the_layers_and_nothing_else() -> None:
    model = language_model(router=router("top_k"))
    config = OptimizerConfig(name="muon", learning_rate=0.01, matrix_learning_rate=0.02, weight_decay=0.1)
    groups = parameter_groups(model, config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    hidden = {names[id(p)] for group in groups if group.get(ORTHOGONAL) for p in group["params"]}
    everything = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(everything) == sorted(names.values())
    assert not any("embedding" in name or "norm" in name or "router" in name for name in hidden)
    assert any("attention" in name for name in hidden) and any("expert" in name for name in hidden)
    rates = {bool(group.get(ORTHOGONAL)): group["lr"] for group in groups}
    assert rates == {True: 0.02, False: 0.01}
    assert base_learning_rate(build_optimizer(model, config)) == 0.01


def test_stable_schedule_warms_up_holds_and_falls() -> None:
    config = OptimizerConfig(schedule="stable", warmup=0.1, decay=0.5, final=0.1)
    factors = [schedule_factor(step, 100, config) for step in range(101)]
    assert factors[0] == 0.1 and factors[9] == factors[50] == 1
    assert factors[75] == 0.55
    assert abs(factors[100] - 0.1) < 1e-12
