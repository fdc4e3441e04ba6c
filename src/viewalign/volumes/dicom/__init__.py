"""DICOM: files → frames → stacks. A stack is what becomes an image: parallel slices, evenly spaced.

A stack is named by the path of one of its files, the first by name. Whoever has that path and the folder as it was
finds the same slices again, so a catalogue needs nothing but paths.
"""
