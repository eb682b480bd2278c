"""A linear head for frozen features: multinomial logistic regression, solved, not trained by steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

ITERATIONS = 200


def fit_linear_head(
    features: Tensor, labels: Tensor, linear: nn.Linear, *, decay: float
) -> tuple[Tensor, Tensor]:
    """Set ``linear`` to the minimum of class-balanced cross-entropy plus L2, and return (middle, scale).

    features: (n, k), standardised by the returned middle and scale (k,) before the layer.  labels: (n,) class
    numbers.  decay: weight of the squared norm of the layer's weights, divided by k so that it means the same
    for any number of features. The minimum is unique: no random numbers are involved.
    """
    features = features.double()
    middle, scale = features.mean(0), features.std(0) + 1e-6
    inputs = (features - middle) / scale
    classes = linear.out_features
    counts = torch.bincount(labels, minlength=classes).clamp(min=1)
    balance = len(labels) / (classes * counts.double())
    weight = torch.zeros((classes, inputs.shape[1]), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight, bias], max_iter=ITERATIONS, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = functional.cross_entropy(inputs @ weight.T + bias, labels, weight=balance)
        loss = loss + decay * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimiser.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    return middle.float(), scale.float()
