"""Memory of the loss: cross-entropy a chunk at a time, and with all logits at once; prints Markdown.

Counted are all allocations of the forward and the backward pass, by PyTorch's profiler: the most bytes that are held
at one time beside hidden states and output weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

WIDTH = 256
VOCABULARIES = (8_192, 50_257)
TOKENS = (1_024, 4_096)


def peak(loss_of: Callable[[Any, Any, Any], Any], tokens: int, vocabulary: int) -> tuple[float, float]:
    """Most bytes held while the loss and its gradients are computed, and the loss."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    torch.manual_seed(0)
    states = torch.randn(tokens, WIDTH, requires_grad=True)
    weight = (torch.randn(vocabulary, WIDTH) / WIDTH**0.5).requires_grad_()
    labels = torch.randint(vocabulary, (tokens,))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss = loss_of(states, weight, labels)
        loss.backward()
    held = most = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most, loss.item()


def plain(states: Any, weight: Any, labels: Any) -> Any:
    """PyTorch's cross-entropy of all logits."""
    import torch.nn.functional as F  # noqa: N812

    return F.cross_entropy(F.linear(states, weight), labels)


def chunked(states: Any, weight: Any, labels: Any) -> Any:
    """That of the training."""
    from textmill.models.losses.likelihood import mean_cross_entropy

    return mean_cross_entropy(states, weight, labels)[0]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer tokens")
    share = 16 if parser.parse_args().quick else 1
    print(
        f"Forward and backward pass in float32, width {WIDTH}; megabytes at the peak, without the inputs. They include"
    )
    print("the gradients of hidden states and output weights. Goal: no growth with vocabulary times")
    print("tokens. In chunks the peak grows with the gradients only, which grow with vocabulary plus tokens.\n")
    print("| vocabulary | tokens | all logits would be | gradients | `cross_entropy` of PyTorch | in chunks |")
    print(f"|{'---:|' * 6}")
    for vocabulary in VOCABULARIES:
        for tokens in (count // share for count in TOKENS):
            (whole, first), (parts, second) = (peak(side, tokens, vocabulary) for side in (plain, chunked))
            assert abs(first - second) < 1e-4 * first, "both sides compute the same loss"
            sizes = (4 * vocabulary * tokens, 4 * WIDTH * (vocabulary + tokens), whole, parts)
            print(f"| {vocabulary:,} | {tokens:,} | {' | '.join(f'{size / 1e6:,.0f}' for size in sizes)} |")


if __name__ == "__main__":
    main()
