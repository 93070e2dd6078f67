"""Raw records in, clean records out."""
