"""Pipelines: a series of DICOM instances in, findings and DICOM result objects out.

Never imports ``node``; usable as a library on a folder of DICOM.
"""
