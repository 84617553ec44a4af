"""Cross-entropy in chunks against PyTorch's, and what it holds in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from textmill.models.losses.likelihood import IGNORED, mean_cross_entropy


class LargestTensor(TorchDispatchMode):
    """Notes the largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def tensors(batch: int = 3, length: int = 50, width: int = 16, vocabulary: int = 101) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    states = torch.randn(batch, length, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    labels = torch.randint(vocabulary, (batch, length))
    labels[0, :7] = IGNORED
    return states, weight, labels


@pytest.mark.parametrize("logits_at_once", [101 * 16, 101 * 37, 1 << 22])
def test_loss_and_gradients_equal_those_of_torch(logits_at_once: int) -> None:
    states, weight, labels = tensors()
    loss, each = mean_cross_entropy(states, weight, labels, logits_at_once=logits_at_once)
    (3 * loss).backward()
    found = states.grad, weight.grad
    states.grad = weight.grad = None
    logits = states @ weight.T
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    (3 * expected).backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found, (states.grad, weight.grad))
    plain = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
    ).detach()
    torch.testing.assert_close(each, plain)


def test_low_precision_stays_near_and_a_batch_without_targets_is_no_nan() -> None:
    states, weight, labels = tensors()
    exact, _ = mean_cross_entropy(states, weight, labels)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = mean_cross_entropy(states, weight, labels)
    loss.backward()
    assert loss.dtype == torch.float32
    assert abs(loss.item() - exact.item()) < 0.02 * exact.item()
    empty, _ = mean_cross_entropy(states, weight, torch.full_like(labels, IGNORED))
    assert empty.item() == 0


def test_logits_never_stand_whole_in_memory() -> None:
    states, weight, labels = tensors(batch=8, length=256, width=8, vocabulary=2000)
    peaks = []
    for batch in (2, 8):
        with LargestTensor() as largest:
            loss, _ = mean_cross_entropy(states[:batch], weight, labels[:batch], logits_at_once=2000 * 64)
            loss.backward()
        peaks.append(largest.elements)
    assert peaks == [2000 * 64] * 2, "four times the tokens must not take more than the same chunk"
