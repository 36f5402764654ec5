"""The settings that come with CoSTL: the defaults, and one file a benchmark."""
