"""Attention states its formula; the fused kernels must agree with it on every kind of input."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tiny_decoder import architecture, language_model, token_ids
from torch._dynamo.testing import CompileCounter
from torch.profiler import ProfilerActivity, profile

from textmill.models import transformer
from textmill.models.attention import (
    SelfAttention,
    additive_mask,
    scaled_dot_product_attention_fused,
    scaled_dot_product_attention_plain,
)
from textmill.models.documents import attend_within, group_documents
from textmill.models.rotary import RotaryPositions, rotate

BATCH, LENGTH = 2, 9
VALID = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0, 0, 0]])
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [5, 5, 5, 5, 5, 5, 5, 5, 7]])
INPUTS = {"causal": {}, "padded": {"valid": VALID}, "packed": {"document_ids": DOCUMENTS}}


def query_key_value(key_value_heads: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    heads = (4, key_value_heads, key_value_heads)
    q, k, v = (torch.randn(BATCH, h, LENGTH, 8, generator=generator, requires_grad=True) for h in heads)
    return q, k, v


def test_plain_form_is_the_formula() -> None:
    query, key, value = query_key_value()
    mask = additive_mask(torch.arange(LENGTH), torch.arange(LENGTH))
    found = scaled_dot_product_attention_plain(query, key, value, mask)
    for i in range(LENGTH):
        scores = torch.stack([(query[0, 1, i] * key[0, 1, j]).sum() / math.sqrt(8) for j in range(i + 1)])
        weights = scores.exp() / scores.exp().sum()
        torch.testing.assert_close(found[0, 1, i], (weights[:, None] * value[0, 1, : i + 1]).sum(0))


@pytest.mark.parametrize("key_value_heads", [4, 2, 1])
@pytest.mark.parametrize("kind", INPUTS)
def test_plain_and_fused_agree_forward_and_backward(kind: str, key_value_heads: int) -> None:
    index = torch.arange(LENGTH)
    mask = additive_mask(index, index, **INPUTS[kind])
    results = []
    for attend in (scaled_dot_product_attention_plain, scaled_dot_product_attention_fused):
        inputs = query_key_value(key_value_heads)
        output = attend(*inputs, mask)
        output.square().sum().backward()
        results.append([output, *(tensor.grad for tensor in inputs)])
    for plain, fused in zip(*results, strict=True):
        torch.testing.assert_close(plain, fused, rtol=1e-4, atol=1e-5)


def test_no_mask_means_causal() -> None:
    index = torch.arange(LENGTH)
    inputs = query_key_value()
    torch.testing.assert_close(
        scaled_dot_product_attention_fused(*inputs, None),
        scaled_dot_product_attention_plain(*inputs, additive_mask(index, index)),
    )


@pytest.mark.parametrize("kind", INPUTS)
def test_mask_lets_through_what_it_should(kind: str) -> None:
    index = torch.arange(LENGTH)
    mask = additive_mask(index, index, **INPUTS[kind]).expand(BATCH, 1, LENGTH, LENGTH)
    for row in range(BATCH):
        for i in range(LENGTH):
            for j in range(LENGTH):
                sees = j <= i
                if kind == "packed":
                    sees = sees and bool(DOCUMENTS[row, i] == DOCUMENTS[row, j])
                if kind == "padded":
                    sees = sees and (i == j or bool(VALID[row, j]))
                assert (mask[row, 0, i, j] == 0) == sees


@pytest.mark.parametrize("options", [{}, {"qk_norm": False, "n_key_value_heads": 2}])
def test_whole_models_agree_whichever_path(options: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = language_model(**options), token_ids(BATCH, LENGTH)
    inputs = [{}, {"attention_mask": VALID}, {"document_ids": DOCUMENTS}]
    with torch.no_grad():
        plain = [model(ids, **each)["logits"] for each in inputs]
        monkeypatch.setattr(transformer, "trains_faster_plain", lambda states, dtype, length: False)
        monkeypatch.setattr("textmill.models.attention.trains_faster_plain", lambda states, dtype, length: False)
        fused = [model(ids, **each)["logits"] for each in inputs]
    for one, other in zip(plain, fused, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_packed_documents_are_read_as_if_alone() -> None:
    model, ids = language_model(), token_ids(BATCH, LENGTH)
    with torch.no_grad():
        packed = model(ids, document_ids=DOCUMENTS)["logits"]
        for row in range(BATCH):
            for document in DOCUMENTS[row].unique():
                inside = DOCUMENTS[row] == document
                alone = model(ids[row][None, inside])["logits"][0]
                torch.testing.assert_close(packed[row, inside], alone, rtol=1e-4, atol=1e-5)


def test_padding_on_either_side_changes_nothing() -> None:
    model, ids = language_model(), token_ids(BATCH, LENGTH)
    with torch.no_grad():
        padded = model(ids, attention_mask=VALID)["logits"]
        for row in range(BATCH):
            inside = VALID[row].bool()
            alone = model(ids[row][None, inside])["logits"][0]
            torch.testing.assert_close(padded[row, inside], alone, rtol=1e-4, atol=1e-5)
    assert padded.isfinite().all()


def test_nothing_sees_the_future() -> None:
    model, ids = language_model(), token_ids(1, LENGTH)
    changed = ids.clone()
    changed[0, 6:] = (changed[0, 6:] + 1) % 29
    with torch.no_grad():
        before, after = model(ids)["logits"], model(changed)["logits"]
    torch.testing.assert_close(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


def test_rotation_keeps_lengths_and_depends_on_distance_alone() -> None:
    positions = RotaryPositions(8, 32, 100.0)
    query, key = torch.randn(1, 32, 1, 8), torch.randn(1, 32, 1, 8)
    query, key = query[:, :1].expand_as(query), key[:, :1].expand_as(key)
    turned_query, turned_key = (
        rotate(heads.transpose(1, 2), positions(slice(0, 32))).transpose(1, 2) for heads in (query, key)
    )
    torch.testing.assert_close(turned_query.norm(dim=-1), query.norm(dim=-1))
    products = turned_query[0, :, 0] @ turned_key[0, :, 0].T
    for distance in (0, 3, 11):
        along = products.diagonal(distance)
        torch.testing.assert_close(along, along[0].expand_as(along), rtol=1e-4, atol=1e-4)


def test_grouped_heads_have_fewer_weights() -> None:
    full, grouped = SelfAttention(architecture()), SelfAttention(architecture(n_key_value_heads=1))
    assert full.query_key_value.weight.shape == (3 * 32, 32)
    assert grouped.query_key_value.weight.shape == (32 + 2 * 8, 32)


LONG = torch.cat([torch.arange(4).repeat_interleave(torch.tensor([130, 1, 60, 9])), torch.arange(200) // 37 + 9])


@pytest.mark.parametrize("key_value_heads", [4, 1])
def test_attention_within_documents_is_that_of_the_mask(key_value_heads: int) -> None:
    documents, index = LONG.view(2, 200), torch.arange(200)
    generator = torch.Generator().manual_seed(0)
    results = []
    for within in (True, False):
        generator.manual_seed(0)
        inputs = [
            torch.randn(2, heads, 200, 8, generator=generator, requires_grad=True)
            for heads in (4, key_value_heads, key_value_heads)
        ]
        if within:
            output = attend_within(*inputs, group_documents(documents))
        else:
            output = scaled_dot_product_attention_plain(*inputs, additive_mask(index, index, document_ids=documents))
        (output * torch.arange(8)).square().sum().backward()
        results.append([output, *(tensor.grad for tensor in inputs)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_groups_hold_documents_of_similar_length() -> None:
    groups = group_documents(LONG.view(2, 200)).groups
    assert [tuple(places.shape) for places in groups] == [(1, 1), (2, 15), (6, 60), (1, 130)]
    assert sum(places.numel() for places in groups) < 2 * 400


def peak_memory(length: int, document: int) -> int:
    """Most bytes that packed attention, forward and backward, holds at a time."""
    inputs = [torch.randn(1, 4, length, 16, requires_grad=True) for _ in range(3)]
    documents = torch.arange(length)[None] // document
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        attend_within(*inputs, group_documents(documents)).sum().backward()
    now = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.parametrize("share", [1, 16], ids=["one-document", "sixteen-documents"])
def test_memory_of_packed_attention_grows_with_the_length(share: int) -> None:
    peaks = [peak_memory(length, length // share) for length in (1024, 2048, 4096)]
    assert all(1.5 < long / short < 2.2 for short, long in itertools.pairwise(peaks)), peaks
    assert 1.8 < (peaks[2] - peaks[1]) / (peaks[1] - peaks[0]) < 2.2, "linear beside what every call takes"


def test_long_packed_rows_have_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = language_model(max_length=200), token_ids(2, 200)
    documents = LONG.view(2, 200)
    with torch.no_grad():
        alone = model(ids[:1, 131:191])["logits"]
        monkeypatch.setattr(transformer, "additive_mask", None)
        packed = model(ids, document_ids=documents)["logits"]
    torch.testing.assert_close(packed[:1, 131:191], alone, rtol=1e-4, atol=1e-5)


def test_compiled_layers_compile_once_for_all_batches_of_documents() -> None:
    """Other documents in a batch are no reason to compile a layer again."""
    model, counter = language_model(max_length=200), CompileCounter()
    torch._dynamo.reset()
    for block in model.decoder.blocks:
        block.compile(backend=counter, dynamic=False)
    ids, counts = token_ids(2, 200), []
    for documents in (LONG, torch.arange(400) // 11, torch.arange(400) // 90):
        model(ids, document_ids=documents.view(2, 200))["logits"].sum().backward()
        counts.append(counter.frame_count)
    assert counts[0] > 0 and len(set(counts)) == 1, counts
