"""What passes take for the loss of a classification head: a head of one output has no softmax to learn from."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from compressor.architectures.tasks import Head
from compressor.passes.quantize._weights.mixed import output_distance
from compressor.passes.surgery.backward import sampled_loss

VALUE, SETS = Head("values", ("score",)), Head("label sets", ("a", "b", "c"))


def gradients(logits: torch.Tensor, head: Head) -> torch.Tensor:
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad(sampled_loss(leaf, None, torch.Generator().manual_seed(0), head), leaf)[0]


def test_the_fisher_information_of_a_number_is_one() -> None:
    assert float(gradients(torch.full((4000, 1), 7.0), VALUE).square().mean()) == pytest.approx(1.0, rel=0.1)


def test_the_fisher_information_of_labels_is_the_variance_of_each() -> None:
    logits = torch.tensor([[-2.0, 0.0, 1.0]]).expand(4000, 3)
    p = torch.sigmoid(logits[0])
    assert gradients(logits, SETS).square().mean(0) == pytest.approx((p * (1 - p)).numpy(), rel=0.1)


def test_the_distance_of_outputs_is_that_of_their_head() -> None:
    found, wanted = torch.randn(5, 3), torch.randn(5, 3)
    p, q = torch.sigmoid(wanted), torch.sigmoid(found)
    kl = F.kl_div(q.log(), p, reduction="sum") + F.kl_div((1 - q).log(), 1 - p, reduction="sum")
    assert output_distance(found, wanted, None, logits=True, head=SETS) == pytest.approx(float(kl), rel=1e-4)
    assert output_distance(found[:, :1], wanted[:, :1], None, logits=True) == 0.0
    distance = output_distance(found[:, :1], wanted[:, :1], None, logits=True, head=VALUE)
    assert distance == pytest.approx(float((found - wanted)[:, 0].square().sum() / 2), rel=1e-5)
