"""Every coded concept that results carry, with where it comes from.

"pydicom" marks a code that a test looks up in pydicom's dictionary of PS3.16 and SNOMED DICOM subset codes.
The private scheme 99PACSNODE (PRIVATE_SCHEME) holds only what no standard scheme had when this was written.
"""

from __future__ import annotations

from collections.abc import Mapping

from highdicom.sr import CodedConcept
from pydicom.sr.coding import Code

from pipelines import quantify
from pipelines.volume import IRRELEVANT, NO_FINDING, Lesion, Lung

PRIVATE_DESIGNATOR = "99PACSNODE"
PRIVATE_SCHEME_NAME = "PACS inference node private codes"


def concept(code: Code) -> CodedConcept:
    """A new item for a code sequence. Always new: items are mutable, and one in two places is one too few."""
    return CodedConcept.from_code(code)


def _code(value: str, scheme: str, meaning: str) -> Code:
    return Code(value, scheme, meaning)


def _private(value: str, meaning: str) -> Code:
    return _code(value, PRIVATE_DESIGNATOR, meaning)


# Anatomy and findings
LUNG = _code("39607008", "SCT", "Lung")  # CID 4; pydicom
RIGHT = _code("24028007", "SCT", "Right")  # CID 244; pydicom
LEFT = _code("7771000", "SCT", "Left")  # CID 244; pydicom
LATERALITY: Mapping[Lung, Code] = {Lung.RIGHT: RIGHT, Lung.LEFT: LEFT}
ANATOMICAL_STRUCTURE = _code("123037004", "SCT", "Anatomical Structure")  # CID 7150; pydicom
ABNORMAL_STRUCTURE = _code("49755003", "SCT", "Morphologically Abnormal Structure")  # CID 7150; pydicom
GROUND_GLASS = _code("112120", "DCM", "Ground glass opacity")  # CID 6104; pydicom
# SNOMED CT morphologic abnormality; HL7 FHIR R6 BodyStructure example "right-lung-consolidation" uses it.
CONSOLIDATION = _code("9656002", "SCT", "Consolidation")
# Not "no abnormality detected" (SCT 281900007): only infection was looked for.
NO_INFECTION_FOUND = _private("no-infection", "No infection found")
LESION: Mapping[Lesion, Code] = {
    Lesion.GROUND_GLASS: GROUND_GLASS,
    Lesion.CONSOLIDATION: CONSOLIDATION,
}
# SNOMED CT disorders; the first is the disease, since the code of its pneumonia is longer than Code Value is.
COVID19 = _code("840539006", "SCT", "COVID-19")
INFLUENZA_A_PNEUMONIA = _code("772839003", "SCT", "Pneumonia caused by Influenza A virus")
IRRELEVANT_TO_INFECTION = _private("irrelevant", "Irrelevant to infection")  # Xu et al. 2020
#: infection type or case type (pipelines.volume) -> code
FINDING: Mapping[str, Code] = {
    "covid19": COVID19,
    "iavp": INFLUENZA_A_PNEUMONIA,
    IRRELEVANT: IRRELEVANT_TO_INFECTION,
    NO_FINDING: NO_INFECTION_FOUND,
}

# Measurements
VOLUME = _code("118565006", "SCT", "Volume")  # CID 7469; pydicom
MEAN_ATTENUATION = _code("112181", "DCM", "Mean Attenuation Coefficient")  # CID 6141; pydicom
PROBABILITY = _code("122157", "DCM", "Probability")  # TID 3829; pydicom
NUMBER_OF_LESIONS = _code("246206008", "SCT", "Number of lesions")  # pydicom
LESION_VOLUME = _private("lesion-volume", "Volume of lesions in the lung")
PERCENT_INVOLVED = _private("percent-involved", "Percentage of lung involved")
PERCENT_PERIPHERAL = _private("percent-periph", "Percentage of lesions within 20 mm of the edge of the lung")
SEVERITY = _private("severity", "Severity by share of lung involved")  # Bernheim et al. 2020
SEVERITY_GRADE: Mapping[str, Code] = {
    grade: _private(f"grade-{grade}", grade.capitalize()) for grade in quantify.SEVERITY
}
#: percentile -> the Hounsfield units below which so many percent of the voxels are
HU_PERCENTILE: Mapping[int, Code] = {
    n: _private(f"hu-p{n}", f"{n}th percentile of attenuation") for n in quantify.PERCENTILES
}
RELATIVE_DISTANCE = _private("rel-distance", "Relative distance from edge")  # Xu et al. 2020
NOISY_OR = _private("noisy-or", "Noisy-OR: 1 - product of (1 - p) over the regions of the type")
CASE_TYPE = _private("case-type", "Case type: the finding with the largest Noisy-OR probability")
#: infection type -> its Noisy-OR over the case
CASE_TYPE_PROBABILITY: Mapping[str, Code] = {
    "covid19": _private("noisy-or-covid19", "Noisy-OR probability of COVID-19"),
    "iavp": _private("noisy-or-iavp", "Noisy-OR probability of influenza A pneumonia"),
}
#: type -> its probability in the patches 1, 2 and 3 of a region
PATCH_PROBABILITY: Mapping[str, tuple[Code, ...]] = {
    "covid19": tuple(_private(f"p{n}-covid19", f"Patch {n}: probability of COVID-19") for n in (1, 2, 3)),
    "iavp": tuple(
        _private(f"p{n}-iavp", f"Patch {n}: probability of influenza A pneumonia") for n in (1, 2, 3)
    ),
    IRRELEVANT: tuple(
        _private(f"p{n}-irrelevant", f"Patch {n}: probability of irrelevant to infection") for n in (1, 2, 3)
    ),
}
VOTE = _private("vote", "Vote of three patches")

# Slice classifiers (chest_ct_triage)
MEAN = _code("373098007", "SCT", "Mean")  # CID 7464; pydicom
POSITIVE = _code("10828004", "SCT", "Positive")  # CID 250; pydicom
NEGATIVE = _code("260385009", "SCT", "Negative")  # CID 250; pydicom
# SNOMED CT disorders; not in PS3.16's context groups
BACTERIAL_PNEUMONIA = _code("53084003", "SCT", "Bacterial pneumonia")
VIRAL_PNEUMONIA = _code("75570004", "SCT", "Viral pneumonia")
LOOKS_NORMAL = _private("class-normal", "Normal, by the mean of the key slices")
#: class of a slice classifier -> code
SLICE_CLASS: Mapping[str, Code] = {
    "normal": LOOKS_NORMAL,
    "bacterial": BACTERIAL_PNEUMONIA,
    "viral": VIRAL_PNEUMONIA,
    "negative": NEGATIVE,
    "positive": POSITIVE,
}
#: the same where the only slice is a picture
PICTURE_CLASS: Mapping[str, Code] = {
    **SLICE_CLASS,
    "normal": _private("class-normal-pic", "Normal, as a picture of one slice looks"),
}
CLASS_PROBABILITY: Mapping[str, Code] = {
    "normal": _private("p-normal", "Probability of a normal lung"),
    "bacterial": _private("p-bacterial", "Probability of bacterial pneumonia"),
    "viral": _private("p-viral", "Probability of viral pneumonia"),
    "negative": _private("p-negative", "Probability of no COVID-19 pneumonia"),
    "positive": _private("p-positive", "Probability of COVID-19 pneumonia"),
}
#: model -> what its predicted class answers
PREDICTED_CLASS: Mapping[str, Code] = {
    "pneumonia_class": _private("class", "Predicted class: normal, bacterial or viral pneumonia"),
    "fusion": _private("covid-class", "Predicted class: COVID-19 pneumonia"),
}
NUMBER_OF_KEY_SLICES = _private("key-slices", "Number of key slices")
LUNG_AREA = _private("lung-area", "Area of lung on the slice")
COMMENT = _code("121106", "DCM", "Comment")  # pydicom

# No result, superseded results
PERFORMED = _private("ai-performed", "Whether the AI analysis was performed")
NOT_PERFORMED = _code("262008008", "SCT", "Not performed")
REJECTED_FOR_QUALITY = _code("113001", "DCM", "Rejected for Quality Reasons")  # CID 7010; pydicom

# Units (UCUM, CID 7181 and CID 7461)
CUBIC_CENTIMETRE = _code("cm3", "UCUM", "Cubic centimeter")  # pydicom
SQUARE_CENTIMETRE = _code("cm2", "UCUM", "Square centimeter")  # pydicom
HOUNSFIELD = _code("[hnsf'U]", "UCUM", "Hounsfield unit")  # pydicom
PERCENT = _code("%", "UCUM", "Percent")  # pydicom
NO_UNITS = _code("1", "UCUM", "no units")  # pydicom
PIXELS = _code("{pixels}", "UCUM", "Pixels")  # TID 1602
MILLIMETRE = _code("mm", "UCUM", "millimeter")  # pydicom

# Procedure, used only where the input names none
CT_UNSPECIFIED = _code("25045-6", "LN", "CT unspecified body region")  # CID 100; pydicom
IMAGING_PROCEDURE = _code("363679005", "SCT", "Imaging procedure")  # pydicom; of a picture that says nothing

# Provenance
ARTIFICIAL_INTELLIGENCE = _code("123110", "DCM", "Artificial Intelligence")  # CID 7162; pydicom
ACQUISITION_EQUIPMENT = _code("109101", "DCM", "Acquisition Equipment")  # CID 7005; pydicom
PROCESSING_EQUIPMENT = _code("109102", "DCM", "Processing Equipment")  # CID 7005; pydicom
SOURCE_IMAGE = _code("121322", "DCM", "Source image for image processing operation")  # CID 7202; pydicom
VOLUME_RENDERING = _code("113074", "DCM", "Volume rendering")  # CID 7203; pydicom
SURFACE_RENDERING = _code("113075", "DCM", "Surface rendering")  # CID 7203; pydicom
PIXEL_BY_PIXEL_SUBTRACTION = _code("113062", "DCM", "Pixel by pixel subtraction")  # CID 7203; pydicom
MULTIPLANAR_REFORMATTING = _code("113072", "DCM", "Multiplanar reformatting")  # CID 7203; pydicom

# Report structure (TID 1500, 1600, 1602); pydicom
ENGLISH_US = _code("en-US", "RFC5646", "English (United States)")
IMAGE_LIBRARY = _code("111028", "DCM", "Image Library")
IMAGE_LIBRARY_GROUP = _code("126200", "DCM", "Image Library Group")
QUALITATIVE_EVALUATIONS = _code("C0034375", "UMLS", "Qualitative Evaluations")
CONCLUSION = _code("121077", "DCM", "Conclusion")
IMAGING_MEASUREMENTS = _code("126010", "DCM", "Imaging Measurements")
MODALITY = _code("121139", "DCM", "Modality")
COMPUTED_TOMOGRAPHY = _code("CT", "DCM", "Computed Tomography")
FRAME_OF_REFERENCE_UID = _code("112227", "DCM", "Frame of Reference UID")
PIXEL_DATA_ROWS = _code("110910", "DCM", "Pixel Data Rows")
PIXEL_DATA_COLUMNS = _code("110911", "DCM", "Pixel Data Columns")
HORIZONTAL_PIXEL_SPACING = _code("111026", "DCM", "Horizontal Pixel Spacing")
VERTICAL_PIXEL_SPACING = _code("111066", "DCM", "Vertical Pixel Spacing")
SPACING_BETWEEN_SLICES = _code("112226", "DCM", "Spacing between slices")
SOURCE = _code("260753009", "SCT", "Source")
