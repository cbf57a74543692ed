"""What a network sees: attention, spectra, class activation maps, interactions, receptive fields.

Every function takes a network and preprocessed images and returns an `Analysis`: arrays with named axes, a sentence, a
plot.
"""
