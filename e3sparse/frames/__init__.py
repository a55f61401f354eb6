"""Labelled frames: read and checked, batched, and compared with what a potential says.

Imports `potentials` and what is below it, not Lightning.
"""
