"""Stories taken away: PDF, EPUB, CBZ, one HTML file, GIF, WebP and MP4 with narration, from a story folder."""

from seedstory_jax.export.book import FORMATS, Exported, ExportSettings, export

__all__ = ["FORMATS", "ExportSettings", "Exported", "export"]
