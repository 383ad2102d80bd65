"""A memory of what stands still and what moves: a coarsening voxel store and a ring of tracks."""
