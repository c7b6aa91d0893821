"""Networks as files that run without this package: ONNX, and PyTorch's exported programs.

``export`` writes a file and runs it at sizes that it was not traced at. ``networks`` and ``detectors`` say what such a
file computes, ``operators`` has the two operations that PyTorch lacks and ONNX has, ``onnx_files`` and ``programs``
write and run the two kinds of file, and ``checking`` compares, of detectors with the ``choices`` of a file. Nothing
here imports onnx before a file is written.
"""

from mm_vitbackbones.exporting.files import Export, ExportMismatch, export

__all__ = ["Export", "ExportMismatch", "export"]
