"""Artifacts in a folder or an object store: files, fingerprints, manifests and leases."""
