"""Adapters over HTTP: several on one backbone, with requests batched together. Needs the extra `serve`."""
