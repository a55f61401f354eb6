"""A model that a framework loaded: structures in, energies, forces, moments out.

ASE begins here. Imports `adapter` and what is below it, not Lightning.
"""
