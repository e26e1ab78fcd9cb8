"""Why it works, in numbers: spectra and what bounds them. Needs scipy."""

from augsubset.diagnostics.spectrum import Spectrum, SpectrumChange, jacobian, spectrum_change

__all__ = ["Spectrum", "SpectrumChange", "jacobian", "spectrum_change"]
