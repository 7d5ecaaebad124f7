"""The flow's stages, one module each: where the layers below are wired together and meet Ray."""
