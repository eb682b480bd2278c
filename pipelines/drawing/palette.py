"""One palette for renderings, pictures and the SEG's recommended display colours, RGB 0-255.

The two lesion colours are from Okabe and Ito's set, told apart with every common colour-vision deficiency,
and both stand out from grey CT. Types are also always named in words beside the colour.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.volume import Lesion, Lung

RGB = tuple[int, int, int]

LESION: Mapping[Lesion, RGB] = {
    Lesion.GROUND_GLASS: (86, 180, 233),  # sky blue
    Lesion.CONSOLIDATION: (230, 159, 0),  # orange
}
#: infection types, from the same set
INFECTION: Mapping[str, RGB] = {
    "covid19": (204, 121, 167),  # reddish purple
    "iavp": (240, 228, 66),  # yellow
}
LUNG: Mapping[Lung, RGB] = {Lung.RIGHT: (214, 178, 170), Lung.LEFT: (190, 178, 205)}

BACKGROUND: RGB = (13, 17, 23)
PANEL: RGB = (24, 31, 41)
LINE: RGB = (55, 66, 80)
TEXT: RGB = (233, 238, 244)
MUTED: RGB = (156, 168, 182)
CALM: RGB = (122, 199, 166)  # "no infection found"
WARNING: RGB = (255, 196, 87)

#: what every picture says unless the site declares clinical use
NOT_CLINICAL = "NOT FOR CLINICAL USE"

#: lesion, infection or case type -> words for people
NAMES: Mapping[str, str] = {
    "covid19": "COVID-19",
    "iavp": "Influenza A pneumonia",
    "irrelevant": "Irrelevant to infection",
    "ground_glass": "Ground glass opacity",
    "consolidation": "Consolidation",
    "no_infection_found": "No infection found",
}
