"""The language model: cache, counts, losses, and its place among the plugins."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_decoder import ROUTERS, VOCABULARY, architecture, language_model, router, token_ids
from torch.nn.functional import cross_entropy, linear

from textmill.errors import UserError
from textmill.models.base import Model
from textmill.models.language_model import LanguageModel
from textmill.training.layers import checkpoint_activations


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"qk_norm": False, "n_key_value_heads": 2},
        {"n_key_value_heads": 1, "tied": False},
        *({"router": router(name)} for name in ROUTERS if name not in ("soft", "random")),
        {"router": router("top_k"), "experts": {"n_experts": 4, "shared_experts": 1, "capacity_factor": 0.5}},
    ],
    ids=str,
)
def test_cached_logits_equal_uncached(options: dict[str, Any]) -> None:
    model, ids = language_model(**options).eval(), token_ids(3, 20)
    with torch.no_grad():
        whole = model(ids)["logits"]
        cache = model.new_cache(3, 20)
        pieces = [ids[:, :7], ids[:, 7:11], *ids[:, 11:].split(1, dim=1)]
        parts = [model(piece, cache=cache)["logits"] for piece in pieces]
    assert cache.length == 20
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)


def test_cache_of_padded_prompts_and_its_reordering() -> None:
    model, ids = language_model().eval(), token_ids(2, 12)
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[0, :3] = 0
    with torch.no_grad():
        cache = model.new_cache(2, 12)
        model(ids[:, :8], attention_mask=mask, cache=cache)
        cache.reorder(torch.tensor([1, 0]))
        next_logits = model(ids[:, 8:], cache=cache)["logits"]
        other_way = torch.cat([ids[1, :8], ids[0, 8:]])[None]
        torch.testing.assert_close(next_logits[0], model(other_way)["logits"][0, 8:], rtol=1e-4, atol=1e-5)
        short = torch.cat([ids[0, 3:8], ids[1, 8:]])[None]
        torch.testing.assert_close(next_logits[1], model(short)["logits"][0, 5:], rtol=1e-4, atol=1e-5)


def test_too_long_is_said() -> None:
    model = language_model()
    with pytest.raises(UserError, match="25 tokens do not fit the model's context of 24"):
        model(token_ids(1, 25))
    with pytest.raises(UserError, match="40 tokens do not fit the model's context of 24"):
        model.new_cache(1, 40)
    cache = model.new_cache(1, 5)
    with pytest.raises(UserError, match="6 tokens do not fit a cache of 5"):
        model(token_ids(1, 6), cache=cache)


def test_soft_experts_cannot_generate() -> None:
    with pytest.raises(UserError, match="Soft depends on later tokens"):
        language_model(router=router("soft")).new_cache(1, 5)


@pytest.mark.parametrize("tied", [True, False])
def test_hidden_states_and_output_weight_make_the_logits(tied: bool) -> None:
    model, ids = language_model(tied=tied), token_ids()
    hidden = model.hidden_states(ids)
    assert hidden.states.shape == (3, 16, 32) and hidden.routing == []
    assert model.output_weight.shape == (VOCABULARY, 32)
    assert (model.output_weight is model.embedding.weight) == tied
    torch.testing.assert_close(linear(hidden.states, model.output_weight), model(ids)["logits"])


def test_first_loss_is_near_that_of_knowing_nothing() -> None:
    torch.manual_seed(0)
    for shape in (architecture(), architecture(router=router("top_k")), architecture(n_layers=12)):
        model, ids = LanguageModel(shape, VOCABULARY), token_ids(8, 24)
        loss = cross_entropy(model(ids)["logits"].flatten(0, 1), token_ids(8, 24, seed=5).flatten())
        assert float(loss.detach()) == pytest.approx(math.log(VOCABULARY), abs=0.5)


def test_every_weight_gets_a_gradient_and_losses_stand_apart() -> None:
    model, ids = language_model(router=router("top_k", noise=True)), token_ids(8)
    hidden = model.hidden_states(ids)
    assert len(hidden.routing) == 2
    losses = model.auxiliary_losses(hidden.routing)
    assert set(losses) == {"load_balancing", "router_z"}
    summed = sum(float(record.losses["router_z"].detach()) for record in hidden.routing)
    assert float(losses["router_z"].detach()) == pytest.approx(summed)
    (hidden.states.square().sum() + losses["load_balancing"]).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert language_model().auxiliary_losses([]) == {}


def test_routers_are_updated_by_their_own_load() -> None:
    model, ids = language_model(router=router("sigmoid_bias", rate=0.5)), token_ids()
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "bias" in name}
    hidden = model.hidden_states(ids)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers() if "bias" in name)
    model.update_routers(hidden.routing)
    for record, (name, buffer) in zip(
        hidden.routing, ((n, b) for n, b in model.named_buffers() if "bias" in n), strict=True
    ):
        load = record.load.float()
        torch.testing.assert_close(buffer - before[name], 0.5 * torch.sign(load.mean() - load))


@pytest.mark.parametrize("name", [None, "top_k", "sigmoid_bias", "expert_choice"])
def test_activations_computed_again_change_no_gradient(name: str | None) -> None:
    options: dict[str, Any] = {"dropout": 0.2} | ({} if name is None else {"router": router(name)})
    gradients = []
    for checkpointing in (False, True):
        model = language_model(**options)
        if checkpointing:
            checkpoint_activations(model)
        torch.manual_seed(4)
        hidden = model.hidden_states(token_ids())
        loss = hidden.states.square().mean() + sum(model.auxiliary_losses(hidden.routing).values())
        loss.backward()
        model.update_routers(hidden.routing)
        gradients.append([*(parameter.grad for parameter in model.parameters()), *model.buffers()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_counts_by_hand() -> None:
    model = language_model(qk_norm=False)
    block = 4 * 32 * 32 + 3 * 32 * 48 + 2 * 32
    assert model.parameter_counts() == {
        "total": VOCABULARY * 32 + 2 * block + 32,
        "active": VOCABULARY * 32 + 2 * block + 32,
    }


@pytest.mark.parametrize("name", [name for name in ROUTERS if name != "soft"])
def test_whichever_router_a_token_passes_as_many_expert_weights(name: str) -> None:
    model, dense = language_model(router=router(name)), language_model()
    gates = sum(p.numel() for n, p in model.named_parameters() if ".router." in n)
    assert model.parameter_counts()["active"] - gates == dense.parameter_counts()["total"]
    assert model.parameter_counts()["total"] > model.parameter_counts()["active"]


@pytest.mark.parametrize("options", [{}, {"router": router("top_k")}])
def test_bfloat16_autocast_stays_close(options: dict[str, Any]) -> None:
    model, ids = language_model(**options), token_ids()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(ids)["logits"].float()
        high = language_model(**options)
    with torch.no_grad():
        exact = high(ids)["logits"]
    assert (low - exact).abs().mean() < 0.1 * exact.std()


def test_cache_in_bfloat16() -> None:
    model, ids = language_model().eval(), token_ids()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        cache = model.new_cache(3, 16)
        parts = [model(piece, cache=cache)["logits"] for piece in (ids[:, :9], *ids[:, 9:].split(1, dim=1))]
        whole = model(ids)["logits"]
    assert cache.keys.dtype == torch.bfloat16
    assert (torch.cat(parts, dim=1) - whole).abs().mean() < 0.05 * whole.std()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 30}, "does not divide into 4 heads"),
        ({"n_key_value_heads": 3}, "cannot share 3 key-value heads"),
        ({"feed_forward": "experts"}, "need a router"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        architecture(**options)


def test_plugin_builds_a_decoder_and_no_encoder(tmp_path: Path) -> None:
    model = Model.build({"_target_": "textmill.models.decoder_model.DecoderModel", "n_layers": 1})
    assert isinstance(model.build_decoder(VOCABULARY, None), LanguageModel)
    with pytest.raises(UserError, match="no encoder"):
        model.build_encoder(None)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match="cannot load pretrained"):
        model.build_decoder(VOCABULARY, tmp_path)
    encoder = Model.build({"_target_": "textmill.models.pretrained_encoder.PretrainedEncoder"})
    with pytest.raises(UserError, match="no decoder"):
        encoder.build_decoder(VOCABULARY, None)
