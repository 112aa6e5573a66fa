"""Pictures in: files, archives and georeferenced rasters read by windows, as 8-bit RGB with a known ground size."""
