"""Why it works, in numbers: spectra, fidelity of gradients, the paper's bounds. Needs scipy."""

from augsubset.diagnostics.spectrum import Spectrum, SpectrumChange, jacobian, spectrum_change

# After the module that says what to install where scipy is missing.
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
