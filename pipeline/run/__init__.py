"""A run: its folder, the manifests of its stages, its command line."""
