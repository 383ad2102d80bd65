"""The ROS 2 package around the node of the Python package vismem."""

from glob import glob

from setuptools import setup

setup(
    name="vismem_ros",
    version="0.1.0",
    packages=["vismem_ros"],
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/vismem_ros"]),
        ("share/vismem_ros", ["package.xml"]),
        ("share/vismem_ros/launch", glob("launch/*.launch.py")),
        ("share/vismem_ros/config", glob("config/*")),
    ],
    install_requires=["setuptools"],
    entry_points={"console_scripts": ["memory_node = vismem_ros.memory_node:main"]},
)
