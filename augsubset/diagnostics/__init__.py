"""Checks of the paper's theory: Jacobian spectra, gradient fidelity, its bounds. Needs scipy."""

from augsubset.diagnostics.spectrum import Spectrum, SpectrumChange, jacobian, spectrum_change

# After spectrum, whose ImportError says what to install if scipy is missing.
from augsubset.diagnostics.fidelity import (  # isort: skip
    Alignment,
    alignment,
    distance_fidelity,
    full_gradients,
    summed_gradient,
)

__all__ = [
    "Alignment",
    "Spectrum",
    "SpectrumChange",
    "alignment",
    "distance_fidelity",
    "full_gradients",
    "jacobian",
    "spectrum_change",
    "summed_gradient",
]
