"""A map of signed distances that knows what moved: voxel blocks, fusion, motion, surface."""
