"""PictureEstimates -> the result set of ``chest_ct_picture``: a TID 1500 SR and a result picture.

The report has one TID 1501 group: the probabilities that each model gives the picture, an outline of the
lungs found on it in its pixels, and no measurement of anything in it.
"""

from __future__ import annotations

import highdicom as hd
from pydicom import Dataset

from pipelines.ct_picture import CtPicture
from pipelines.picture_estimates import PictureEstimates, conclusion
from pipelines.picture_page import picture_page
from pipelines.results import codes
from pipelines.results.capture import build_capture
from pipelines.results.document import algorithm, build_document, measurement
from pipelines.results.identity import SERIES_TYPES, result_uid
from pipelines.results.outlines import Outline, hull, image_region
from pipelines.results.result_set import ResultSet
from pipelines.results.triage import evaluations
from pipelines.volume import ResultContext

#: decimals of a printed probability
DECIMALS = 6
#: what the picture went through before, which the result picture shows of it (PS3.3 C.7.6.1.1.5)
_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")


def build_picture_results(
    picture: CtPicture, estimates: PictureEstimates, context: ResultContext
) -> ResultSet:
    """Compose report and result picture."""
    report = build_picture_report(picture, estimates, context)
    page = picture_page(picture, estimates, context)
    capture = build_capture(page, picture, context, role="estimates_picture")
    capture.BurnedInAnnotation = "YES"  # nobody has looked at the picture
    for keyword in _LOSSY:
        if keyword in picture.source:
            capture[keyword] = picture.source[keyword]
    return ResultSet((("estimates_report", report), ("estimates_picture", capture)))


def build_picture_report(picture: CtPicture, estimates: PictureEstimates, context: ResultContext) -> Dataset:
    """Encode the estimates as a measurement report; the notes are its comments."""
    return build_document(
        picture,
        context,
        [_group(picture, estimates, context)],
        evaluations=evaluations(
            estimates.by_model, codes.PICTURE_CLASS, conclusion(estimates), estimates.notes
        ),
        series=SERIES_TYPES["estimates_report"],
    )


def _group(
    picture: CtPicture, estimates: PictureEstimates, context: ResultContext
) -> hd.sr.MeasurementsAndQualitativeEvaluations:
    source = picture.source
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=result_uid(picture, context, "picture/tracking"), identifier="Picture"
        ),
        finding_type=codes.PICTURE_CLASS[estimates.case_type],
        finding_sites=[hd.sr.FindingSite(anatomic_location=codes.LUNG)],
        measurements=[
            measurement(
                *(codes.CLASS_PROBABILITY[name], p, codes.NO_UNITS, DECIMALS),
                algorithm_id=algorithm(one.model),
            )
            for one in estimates.by_model
            for name, p in one.case.items()
        ],
        source_images=[hd.sr.SourceImageForMeasurementGroup(source.SOPClassUID, source.SOPInstanceUID)],
    )
    drawn = Outline(0, 1, hull(estimates.lungs))
    group[0].ContentSequence.append(image_region(picture, drawn))
    return group
