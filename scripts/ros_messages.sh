#!/usr/bin/env bash
# Build a ROS 2 interface package with the wheels of a virtual environment, and install it there.
# In a sourced ROS 2 workspace colcon does this instead. Needs cmake and a compiler.
#
#     scripts/ros_messages.sh ENVIRONMENT [PACKAGE]
set -euo pipefail
environment=$(cd "$1" && pwd)
package=$(cd "${2:-$(dirname "$0")/../apps/ros2/vismem_msgs}" && pwd)
python="$environment/bin/python"

# The exported targets of the wheels name the headers of the Python that they were built by.
python_home='/opt/python/cp[0-9]+-cp[0-9]+'
headers=$("$python" -c "import sysconfig; print(sysconfig.get_path('include'))")
numpy=$("$python" -c "import numpy; print(numpy.get_include())")
{ grep -rlE --include='*.cmake' "$python_home" "$environment/share" || true; } | xargs -r sed -Ei \
  -e "s#$python_home/lib/python3[.0-9]+/site-packages/numpy/(_core|core)/include#$numpy#g" \
  -e "s#$python_home/include/python3[.0-9]+#$headers#g"

build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
export AMENT_PREFIX_PATH="$environment" CMAKE_PREFIX_PATH="$environment"
export PATH="$environment/bin:$PATH"
cmake -S "$package" -B "$build" -DCMAKE_INSTALL_PREFIX="$environment" \
  -DPython3_EXECUTABLE="$python" -DPython3_FIND_VIRTUALENV=ONLY -DBUILD_TESTING=OFF \
  -DCMAKE_BUILD_TYPE=MinSizeRel -Wno-dev >"$build/log" 2>&1 &&
  cmake --build "$build" -j 2 >>"$build/log" 2>&1 &&
  cmake --install "$build" >>"$build/log" 2>&1 || { tail -n 40 "$build/log" >&2; exit 1; }
echo "$(basename "$package"): built and installed in $environment"
