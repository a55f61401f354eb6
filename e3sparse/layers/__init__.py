"""What a layer's weight is, and how W + ΔW gets into it.

Imports torch, and e3nn where it meets it.
"""
