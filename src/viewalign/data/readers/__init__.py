"""Readers: NIfTI, what SimpleITK reads, DICOM."""
