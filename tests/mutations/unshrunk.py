"""A pytest plugin: hypothesis draws the same examples in every run and reports the first that fails as it is."""

from hypothesis import Phase, settings

settings.register_profile("unshrunk", phases=[Phase.explicit, Phase.generate], derandomize=True, database=None)
settings.load_profile("unshrunk")
