"""How the small ``fusion`` is trained: as ``pneumonia_class``, twice as long, with another head.

Its head reads square roots of the features (``RootLinear``), and the more pictures a source has (a paper, a
patient), the less each of them counts: they resemble each other. docs/evaluation.md has what else was tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from triton_models.data.pneumonia_slices import COVID_CLASSES, pneumonia_slices
from triton_models.training.recipes.lung_pooled import ClassImage, LungPooledRecipe


class SmallFusionRecipe(LungPooledRecipe):
    """Phantoms, in the place of a list of pictures, are negative or positive."""

    steps = 3000
    head_decay = 0.2

    def phantoms(self, seeds: Sequence[int]) -> Sequence[ClassImage]:
        """Generated pneumonias by whether they are COVID-19's."""
        slices = pneumonia_slices(seeds, self.settings.cache)
        return [replace(one, label=COVID_CLASSES[one.label]) for one in slices]

    def weights(self, images: Sequence[ClassImage]) -> Tensor:
        """The inverse root of how many pictures a picture's source has."""
        counts = Counter(image.group for image in images)
        return torch.tensor([counts[image.group] ** -0.5 for image in images])
