#!/usr/bin/env bash
# Make an environment with ROS 2 (Kilted) from wheels, with which the memory node runs and is
# tested, without any ROS installed. The wheels re-execute the interpreter at its start, so they get
# an environment of their own; vismem and what it needs are taken from the one that is active.
#
#     scripts/ros_env.sh FOLDER
#
# Exit code 3 if the wheels cannot be had.
set -euo pipefail
folder=$1
here=$(cd "$(dirname "$0")" && pwd)

python -m venv "$folder"
"$folder/bin/pip" install -q -r "$here/ros_wheels.txt" || exit 3  # they cannot be had here
python - "$folder" <<'PYTHON'
import pathlib, sys, sysconfig

own = next(pathlib.Path(sys.argv[1]).glob("lib/python*/site-packages"))
shared = sysconfig.get_path("purelib")
(own / "vismem_shared.pth").write_text(f"import site; site.addsitedir({shared!r})\n")
PYTHON
"$here/ros_messages.sh" "$folder"
"$folder/bin/python" -c "import rclpy, vismem_msgs.srv, vismem; print('ROS 2 from wheels:', rclpy.__file__)"
