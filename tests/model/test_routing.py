"""Routers and the dispatch of tokens to experts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from tiny_decoder import ROUTERS, architecture, language_model, router, token_ids

from textmill.models.experts import Experts, MixtureOfExperts
from textmill.models.routing.assignment import group_pairs, sort_and_group
from textmill.models.routing.base import Router, Routing, build_router
from textmill.models.routing.base_layer import balanced_assignment
from textmill.models.routing.losses import load_balancing_loss, router_z_loss
from textmill.models.routing.record import RoutingRecord
from textmill.models.routing.sinkhorn import sinkhorn

WIDTH, EXPERTS, LENGTH = 16, 4, 24
IDS = torch.arange(2 * LENGTH).view(2, LENGTH) % 7


def built(name: str, seed: int = 0, **options: Any) -> Router:
    torch.manual_seed(seed)
    found = build_router(router(name, **options), WIDTH, EXPERTS, 1)
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter)
    return found


def states() -> torch.Tensor:
    return torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1))


def naive(layer: MixtureOfExperts, x: torch.Tensor, assignment: Any) -> torch.Tensor:
    """The mixture of experts as a loop over pairs of token and expert."""
    flat, output = x.flatten(0, 1), torch.zeros_like(x.flatten(0, 1))
    experts = torch.repeat_interleave(torch.arange(len(assignment.counts)), assignment.counts)
    for token, expert, weight in zip(assignment.tokens, experts, assignment.weights, strict=True):
        gate, up = (layer.experts.gate_up[expert] @ flat[token]).chunk(2)
        output[token] = output[token] + weight * (layer.experts.down[expert] @ (torch.sigmoid(gate) * gate * up))
    return output.view(x.shape)


@pytest.mark.parametrize("capacity_factor", [None, 0.7])
@pytest.mark.parametrize("name", [name for name in ROUTERS if name not in ("soft", "random")])
def test_dispatch_equals_a_loop_over_pairs(name: str, capacity_factor: float | None) -> None:
    shape = architecture(router=router(name), width=WIDTH, experts={"n_experts": 4, "capacity_factor": capacity_factor})
    torch.manual_seed(0)
    layer = MixtureOfExperts(shape, 0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = states().requires_grad_()
    assignment = layer.router(x, IDS, capacity_factor).assignment
    output, record = layer(x, IDS)
    expected = naive(layer, x, assignment)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    weighing = torch.randn_like(output)
    wanted = [x, *layer.parameters()]
    found = torch.autograd.grad((output * weighing).sum(), wanted, allow_unused=True)
    known = torch.autograd.grad((expected * weighing).sum(), wanted, allow_unused=True)
    for one, other in zip(found, known, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert record.load.sum() == assignment.load.sum()


def test_equal_numbers_are_multiplied_as_one_batch_with_the_same_result() -> None:
    experts = Experts(3, 8, 16)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    rows, counts = torch.randn(12, 8), torch.tensor([4, 4, 4])
    together = torch.autograd.grad(experts(rows, counts).square().sum(), list(experts.parameters()))
    alone = [experts(part, torch.eye(3, dtype=torch.long)[e] * 4) for e, part in enumerate(rows.split(4))]
    apart = torch.autograd.grad(torch.cat(alone).square().sum(), list(experts.parameters()))
    torch.testing.assert_close(together, apart)
    assert [gradient.is_contiguous() for gradient in together] == [True, True]


def test_empty_experts_are_no_trouble() -> None:
    experts = Experts(3, 8, 16)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    rows = torch.randn(5, 8, requires_grad=True)
    experts(rows, torch.tensor([0, 5, 0])).square().sum().backward()
    assert experts.gate_up.grad is not None and experts.gate_up.grad[1].abs().sum() > 0
    assert experts.gate_up.grad[0].abs().sum() == 0
    assert experts(rows[:0], torch.tensor([0, 0, 0])).shape == (0, 8)


def test_a_full_expert_turns_the_last_tokens_away() -> None:
    chosen = torch.tensor([[0], [1], [0], [0], [1], [2]])
    assignment = sort_and_group(chosen, torch.arange(6.0)[:, None], 3, capacity=2)
    assert assignment.tokens.tolist() == [0, 2, 1, 4, 5]
    assert assignment.weights.tolist() == [0.0, 2.0, 1.0, 4.0, 5.0]
    assert assignment.counts.tolist() == [2, 2, 1]
    assert assignment.load.tolist() == [3, 2, 1]
    assert float(RoutingRecord.of(Routing(assignment)).dropped) == pytest.approx(1 / 6)


def test_pairs_may_be_of_any_number() -> None:
    taken = torch.tensor([[True, True], [False, False], [False, True]])
    assignment = group_pairs(taken, torch.arange(6.0).view(3, 2))
    assert assignment.tokens.tolist() == [0, 0, 2]
    assert assignment.weights.tolist() == [0.0, 1.0, 5.0]
    assert assignment.counts.tolist() == [1, 2]
    assert assignment.combine(torch.ones(3, 1)).flatten().tolist() == [1.0, 0.0, 5.0]


def test_padded_pairs_keep_outputs_and_give_round_counts() -> None:
    drawn = torch.Generator().manual_seed(0)
    chosen = torch.randint(5, (400, 2), generator=drawn) ** 2 // 4  # expert 3 gets nothing
    weights = torch.rand(400, 2, generator=drawn, requires_grad=True)
    plain = sort_and_group(chosen, weights, 5)
    filled = plain.padded()
    assert plain.counts.tolist() == [338, 152, 159, 0, 151]
    assert filled.counts.tolist() == [384, 160, 160, 0, 160]
    states = torch.randn(400, 3, generator=drawn, requires_grad=True)
    gradients = []
    for assignment in (plain, filled):
        output = assignment.combine(assignment.dispatch(states).tanh())
        gradients.append((output, *torch.autograd.grad(output.square().sum(), (states, weights), retain_graph=True)))
    torch.testing.assert_close(gradients[0], gradients[1])
    nearly_even = sort_and_group(torch.arange(400)[:, None] % 13 % 4, weights[:, :1], 4).padded()
    assert nearly_even.counts.tolist() == [128] * 4, "numbers not far apart are made equal"


def test_top_k_weights_are_the_normalised_largest_probabilities() -> None:
    top_k = built("top_k", k=2)
    routing = top_k(states(), IDS, None)
    assert routing.probabilities is not None
    sums = torch.zeros(2 * LENGTH).index_add(0, routing.assignment.tokens, routing.assignment.weights)
    torch.testing.assert_close(sums, torch.ones(2 * LENGTH))
    assert set(routing.losses) == {"load_balancing", "router_z"}
    assert not top_k.eval()(states(), IDS, None).losses


def test_noise_comes_in_training_only() -> None:
    noisy = built("top_k", noise=True)
    twice = [noisy(states(), IDS, None).probabilities for _ in range(2)]
    assert not torch.equal(twice[0], twice[1])
    noisy.eval()
    twice = [noisy(states(), IDS, None).probabilities for _ in range(2)]
    assert torch.equal(twice[0], twice[1])


@pytest.mark.parametrize("name", ["expert_choice", "base"])
def test_balance_by_construction(name: str) -> None:
    load = built(name)(states(), IDS, None).assignment.load
    assert load.tolist() == [int(load.sum()) // EXPERTS] * EXPERTS


@pytest.mark.parametrize("popularity", [0.0, 3.0])
def test_balanced_assignment_is_nearly_the_best_there_is(popularity: float) -> None:
    draws = np.random.default_rng(0)
    scores = (draws.normal(size=(320, 4)) + popularity * draws.normal(size=4)).astype(np.float32)
    found = balanced_assignment(torch.from_numpy(scores)).numpy()
    assert np.bincount(found).tolist() == [80] * 4
    rows, places = linear_sum_assignment(np.repeat(scores, 80, axis=1), maximize=True)
    best, chance = scores[rows, places // 80].sum(), scores.mean() * len(scores)
    assert best - scores[rows, found].sum() < 0.002 * (best - chance)


def test_balanced_assignment_without_preference() -> None:
    assert balanced_assignment(torch.zeros(10, 4)).bincount().max() == 3


def test_sinkhorn_balances_rows_and_columns() -> None:
    plan = sinkhorn(torch.randn(40, 4, generator=torch.Generator().manual_seed(0)), 50).exp()
    torch.testing.assert_close(plan.sum(1), torch.ones(40), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(plan.sum(0), torch.full((4,), 10.0), rtol=1e-3, atol=1e-3)


def test_sinkhorn_router_is_more_balanced_than_greedy() -> None:
    balancing = built("sinkhorn")
    skewed = states() + balancing.gate.weight[0].detach()
    trained = balancing(skewed, IDS, None).assignment.load
    greedy = balancing.eval()(skewed, IDS, None).assignment.load
    assert trained.max() < greedy.max()


def test_bias_moves_against_the_load_and_changes_no_weight() -> None:
    biased = built("sigmoid_bias", k=1, rate=0.5, normalised=False)
    routing = biased(states(), IDS, None)
    assert routing.losses == {}
    biased.update(torch.tensor([10, 2, 4, 4]))
    assert biased.bias.tolist() == [-0.5, 0.5, 0.5, 0.5]
    biased.bias.copy_(torch.tensor([9.0, 0.0, 0.0, 0.0]))
    moved = biased(states(), IDS, None).assignment
    assert moved.counts.tolist() == [2 * LENGTH, 0, 0, 0]
    torch.testing.assert_close(moved.weights, biased.logits(states()).sigmoid()[:, 0])


def test_biases_bring_balance() -> None:
    biased = built("sigmoid_bias", k=1, rate=0.02)
    skewed = states() + 0.5 * biased.gate.weight[0].detach()
    before = biased(skewed, IDS, None).assignment.load
    for _ in range(200):
        biased.update(biased(skewed, IDS, None).assignment.load)
    assert biased(skewed, IDS, None).assignment.load.max() < before.max()


def test_hash_follows_the_token_and_nothing_else() -> None:
    hashing = built("hash")
    assignment = hashing(states(), IDS, None).assignment
    experts = torch.repeat_interleave(torch.arange(EXPERTS), assignment.counts)
    by_token = dict(zip(assignment.tokens.tolist(), experts.tolist(), strict=True))
    flat = IDS.flatten().tolist()
    assert len({(flat[token], expert) for token, expert in by_token.items()}) == 7
    spread = hashing(torch.zeros(1, 4000, WIDTH), torch.arange(4000)[None], None).assignment.load
    assert spread.min() > 900


def test_expert_choice_threshold_takes_about_as_many_in_evaluation() -> None:
    choosing = built("expert_choice", momentum=0.0, experts_per_token=1.0)
    trained = choosing(states(), IDS, None).assignment
    choosing.update(trained.load)
    evaluated = choosing.eval()(states(), IDS, None).assignment
    assert torch.equal(trained.counts, evaluated.counts)
    for one, other in zip(
        trained.tokens.split(trained.counts.tolist()), evaluated.tokens.split(trained.counts.tolist()), strict=True
    ):
        assert set(one.tolist()) == set(other.tolist())


@pytest.mark.parametrize("name", [name for name in ROUTERS if name != "random"])
def test_who_looks_ahead_says_so(name: str) -> None:
    """Routers that are not marked route a token alike whatever follows; evaluation keeps to it unless marked."""
    ids = token_ids(1, 12)
    changed = ids.clone()
    changed[0, 6:] = (changed[0, 6:] + 3) % 29
    model = language_model(router=router(name))
    mixture = model.decoder.blocks[0].feed_forward
    assert isinstance(mixture, MixtureOfExperts)

    def differs() -> bool:
        with torch.no_grad():
            before, after = model(ids)["logits"][:, :6], model(changed)["logits"][:, :6]
        return not torch.allclose(before, after, rtol=1e-4, atol=1e-5)

    assert differs() == mixture.router.looks_ahead
    model.eval()
    assert differs() == (not mixture.router.causal_in_evaluation)


def test_losses_by_hand() -> None:
    even = torch.full((8, 4), 0.25)
    assert float(load_balancing_loss(even, torch.full((4,), 2))) == pytest.approx(1.0)
    certain = torch.eye(4)[[0, 0, 0, 0]]
    assert float(load_balancing_loss(certain, torch.tensor([4, 0, 0, 0]))) == pytest.approx(4.0)
    assert float(router_z_loss(torch.zeros(5, 4))) == pytest.approx(math.log(4) ** 2)
