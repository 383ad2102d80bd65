"""Faces that people and robots use: the demo and the ROS 2 node live here."""
