"""Importers: tables that others publish, and Trimtab's own, read and looked at critically.

One module a format; ``detect`` picks it by what the file holds. Negative and missing rows are
refused with the row named; what is merely odd (copies, steps that are not monotone) is flagged.
numpy and the standard library only.
"""

from latency_tables.importers.content import Content, Format
from latency_tables.importers.detect import FORMATS, Import, detect, import_file

__all__ = ["FORMATS", "Content", "Format", "Import", "detect", "import_file"]
