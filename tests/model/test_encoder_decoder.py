"""Encoder-decoders: cross-attention, padding and the cache change nothing; the hub's and ours have one interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.project import write_tiny_bert
from tiny_decoder import VOCABULARY, architecture, token_ids
from torch.nn.functional import cross_entropy

from textmill.config.sections.generation import GenerationConfig
from textmill.errors import UserError
from textmill.models import attention
from textmill.models.attention import CrossAttention, padding_mask
from textmill.models.encoder_decoder import EncoderDecoder, shift_right
from textmill.models.encoder_decoder_model import EncoderDecoderModel
from textmill.models.generation import generate, generate_tokens
from textmill.models.hub_encoder_decoder import HubEncoderDecoder
from textmill.models.losses.likelihood import IGNORED, mean_cross_entropy
from textmill.models.warm_start import WarmStart
from textmill.predicting.weights import read_weights, write_weights

END = 0
T5 = {
    "model_type": "t5",
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 1,
    "pad_token_id": 1,
}
MASK = torch.tensor([[1] * 9, [1] * 5 + [0] * 4, [1] * 7 + [0] * 2])


def encoder_decoder(seed: int = 0, **options: Any) -> EncoderDecoder:
    torch.manual_seed(seed)
    shape = {"n_layers": 2, "n_encoder_layers": 1, "n_heads": 4, "width": 32, "hidden_width": 48, "max_length": 24}
    model = EncoderDecoderModel.from_options(**(shape | options)).build_encoder_decoder(VOCABULARY, END, None)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif "embedding" not in name:
                parameter.mul_(3)
    return model.eval()


def labels() -> torch.Tensor:
    found = token_ids(3, 6, seed=4)
    found[1, 4:] = IGNORED
    return found


@pytest.mark.parametrize("key_value_heads", [None, 2])
def test_cross_attention_is_the_formula_over_the_whole_source(
    key_value_heads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = CrossAttention(architecture(n_key_value_heads=key_value_heads))
    states, source = torch.randn(3, 5, 32), torch.randn(3, 9, 32)
    key, value = layer.keys_and_values(source)
    mask = padding_mask(MASK, torch.float32)
    plain = layer(states, key, value, mask)
    monkeypatch.setattr(attention, "trains_faster_plain", lambda *_: False)
    torch.testing.assert_close(plain, layer(states, key, value, mask), rtol=1e-4, atol=1e-5)
    # By hand, a row and a head at a time, over what is no padding
    query = layer.query_norm(layer.query(states).view(3, 5, 4, 8))
    group = 4 // key.size(1)
    for row in range(3):
        size = int(MASK[row].sum())
        heads = []
        for head in range(4):
            keys, values = key[row, head // group, :size], value[row, head // group, :size]
            shares = (query[row, :, head] @ keys.T / 8**0.5).softmax(dim=-1)
            heads.append(shares @ values)
        torch.testing.assert_close(plain[row], layer.output(torch.cat(heads, dim=-1)), rtol=1e-4, atol=1e-5)


def test_padding_and_neighbours_change_nothing() -> None:
    model = encoder_decoder()
    sources = token_ids(3, 9)
    together = model(sources, MASK, token_ids(3, 6, seed=2))["logits"]
    for row in range(3):
        size = int(MASK[row].sum())
        alone = model(sources[row : row + 1, :size], MASK[row : row + 1, :size], token_ids(3, 6, seed=2)[row : row + 1])
        torch.testing.assert_close(alone["logits"][0], together[row], rtol=1e-4, atol=1e-4)
    changed = sources.clone()
    changed[0, 8] = (changed[0, 8] + 1) % VOCABULARY
    other = model(changed, MASK, token_ids(3, 6, seed=2))["logits"]
    assert not torch.allclose(other[0, 0], together[0, 0], atol=1e-3), "the encoder sees what comes later"
    assert torch.equal(other[1:], together[1:])


@pytest.mark.parametrize("beams", [1, 4])
def test_writing_side_by_side_and_alone_is_the_same(beams: int) -> None:
    model, sources = encoder_decoder(), token_ids(3, 9)
    options = GenerationConfig(temperature=0.0, beams=beams, max_new_tokens=10)
    together = model.generate(sources, MASK, options)
    alone = [model.generate(sources[row : row + 1], MASK[row : row + 1], options)[0] for row in range(3)]
    assert together == alone
    assert len({tuple(tokens) for tokens in together}) == 3, "each is about its own source"


def test_a_cache_changes_nothing() -> None:
    model = encoder_decoder()
    options = GenerationConfig(temperature=0.0, max_new_tokens=10)
    with torch.inference_mode():
        source = model.read_source(token_ids(3, 9), MASK)
    kept, anew = (
        list(generate(model.decoder, [[END]] * 3, options, VOCABULARY, source=source, cached=cached))
        for cached in (True, False)
    )
    assert kept == anew and len(kept) == 10


def test_beams_find_likelier_text_than_greedy_choice() -> None:
    model, sources = encoder_decoder(seed=3), token_ids(3, 9)

    def likelihood(row: int, tokens: list[int]) -> float:
        inputs = torch.tensor([[END, *tokens]])
        logits = model(sources[row : row + 1], MASK[row : row + 1], inputs)["logits"][0].log_softmax(dim=-1)
        return float(sum(logits[position, token] for position, token in enumerate(tokens)))

    with torch.inference_mode():
        source = model.read_source(sources, MASK)
        options = GenerationConfig(temperature=0.0, max_new_tokens=5, beams=8)
        found = generate_tokens(model.decoder, [[END]] * 3, options, VOCABULARY, source=source)
        one = options.model_copy(update={"beams": 1})
        greedy = generate_tokens(model.decoder, [[END]] * 3, one, VOCABULARY, source=source)
        for row in range(3):
            assert likelihood(row, found[row]) >= likelihood(row, greedy[row]) - 1e-4


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_pytorchs_with_smoothed_labels(smoothing: float) -> None:
    model, sources, targets = encoder_decoder(), token_ids(3, 9), labels()
    loss, each = model.likelihood(sources, MASK, targets, smoothing)
    logits = model(sources, MASK, shift_right(targets, END, END))["logits"].flatten(0, 1)
    torch.testing.assert_close(loss, cross_entropy(logits, targets.flatten(), label_smoothing=smoothing))
    expected = cross_entropy(logits, targets.flatten(), reduction="none").view(3, 6)
    torch.testing.assert_close(each, expected)


def test_gradients_of_smoothed_labels_are_pytorchs() -> None:
    states, weight = torch.randn(3, 6, 16, requires_grad=True), torch.randn(VOCABULARY, 16, requires_grad=True)
    targets = labels()
    ours, _ = mean_cross_entropy(states, weight, targets, label_smoothing=0.2, logits_at_once=VOCABULARY * 4)
    mine = torch.autograd.grad(ours, (states, weight))
    logits = (states @ weight.T).flatten(0, 1)
    theirs = torch.autograd.grad(cross_entropy(logits, targets.flatten(), label_smoothing=0.2), (states, weight))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_model_of_the_hub_computes_and_writes_as_transformers_does(tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = HubEncoderDecoder.from_options(architecture=T5).build_encoder_decoder(VOCABULARY, END, None).eval()
    sources, targets = token_ids(3, 9) % (VOCABULARY - 2) + 2, labels()
    loss, each = network.likelihood(sources, MASK, targets)
    theirs = network.backbone(input_ids=sources, attention_mask=MASK, labels=targets)
    torch.testing.assert_close(loss, theirs.loss)
    assert each.sum().item() == pytest.approx(theirs.loss.item() * int((targets != IGNORED).sum()), rel=1e-4)
    options = GenerationConfig(temperature=0.0, beams=3, max_new_tokens=6)
    found = network.generate(sources, MASK, options)
    assert [len(row) <= 6 and END not in row for row in found] == [True] * 3
    # Exported, transformers reads it, and so do we, with tied weights
    write_weights(network, tmp_path)
    again = HubEncoderDecoder.from_options().build_encoder_decoder(VOCABULARY, END, tmp_path).eval()
    assert again.generate(sources, MASK, options) == found
    (tmp_path / "shape").mkdir()
    (tmp_path / "shape/config.json").write_bytes((tmp_path / "config.json").read_bytes())
    empty = HubEncoderDecoder.from_options().build_encoder_decoder(VOCABULARY, END, tmp_path / "shape").eval()
    read_weights(empty, tmp_path)
    assert empty.generate(sources, MASK, options) == found


def test_hub_encoder_decoder_unloadable_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no pretrained weights and no architecture"):
        HubEncoderDecoder.from_options().build_encoder_decoder(VOCABULARY, END, None)
    write_tiny_bert(tmp_path)
    with pytest.raises(UserError, match="not an encoder-decoder of transformers"):
        HubEncoderDecoder.from_options().build_encoder_decoder(VOCABULARY, END, tmp_path)


def test_a_warm_start_brings_the_encoder_and_its_embedding(tmp_path: Path) -> None:
    write_tiny_bert(tmp_path)
    model = WarmStart.from_options(decoder_layers=1, max_target_length=16)
    network: Any = model.build_encoder_decoder(40, 3, tmp_path).eval()
    known = network.encoder.backbone.get_input_embeddings().weight
    assert torch.equal(network.decoder.embedding.weight[: len(known)], known[:40])
    sources = token_ids(3, 9)
    expected = network.encoder(sources, MASK)
    torch.testing.assert_close(network.encode(sources, MASK), expected)
    assert len(network.generate(sources, MASK, GenerationConfig(temperature=0.0, beams=2, max_new_tokens=5))) == 3
    folder = tmp_path / "exported"
    folder.mkdir()
    write_weights(network, folder)
    other: Any = model.build_encoder_decoder(40, 3, tmp_path).eval()
    read_weights(other, folder)
    assert all(torch.equal(one, two) for one, two in zip(network.parameters(), other.parameters(), strict=True))
