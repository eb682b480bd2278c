"""A linear head for frozen features: multinomial logistic regression, solved, not trained by steps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from triton_models.architectures.lung_pooled import StandardisedLinear

ITERATIONS = 200


def fit_linear_head(
    head: StandardisedLinear, features: Tensor, labels: Tensor, *, decay: float, weights: Tensor | None = None
) -> None:
    """Set ``head`` to the minimum of class-balanced cross-entropy plus L2.

    features: (n, k).  labels: (n,) class numbers.  decay: weight of the squared norm of the layer's weights.
    weights: (n,), how much each row counts beside its class's balance; all the same by default.
    The minimum is unique: no random numbers are involved.
    """
    features = head.spread(features.double())
    middle, scale = features.mean(0), features.std(0) + 1e-6
    inputs = (features - middle) / scale
    classes = head.linear.out_features
    counts = torch.bincount(labels, minlength=classes).clamp(min=1)
    shares = (len(labels) / (classes * counts.double()))[labels]
    if weights is not None:
        shares = shares * weights.double()
    shares = shares / shares.sum()
    weight = torch.zeros((classes, inputs.shape[1]), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight, bias], max_iter=ITERATIONS, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        losses = functional.cross_entropy(inputs @ weight.T + bias, labels, reduction="none")
        loss = (shares * losses).sum() + decay * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimiser.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        head.linear.weight.copy_(weight)
        head.linear.bias.copy_(bias)
        head.middle.copy_(middle)
        head.scale.copy_(scale)
