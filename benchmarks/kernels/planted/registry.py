"""Bugs in how a form, a size and a way to start are chosen, which the tests have to find."""

TESTS = ["tests/kernels/test_registry.py", "tests/kernels/test_tuning.py"]
REGISTRY, LAUNCH, TUNING = (f"kernels/{name}.py" for name in ("registry", "launch", "tuning"))
PLANTED = [
    (REGISTRY, 'os.environ.get("VISMEM_KERNELS", "auto")', '"auto"'),
    (REGISTRY, "mode not in get_args(Mode)", "not mode"),
    (REGISTRY, '_mode == "torch" or (', "("),
    (REGISTRY, 'and like.device.type == "cpu"', ""),
    (REGISTRY, "_unavailable(like.device.type) or obstacle", "_unavailable(like.device.type)"),
    (REGISTRY, "        _mode = before", "        pass"),
    (REGISTRY, "found < LEAST_CAPABILITY", "found <= LEAST_CAPABILITY"),
    (REGISTRY, "or torch.version.hip", ""),
    (REGISTRY, "@lru_cache\ndef _tell", "def _tell"),
    (REGISTRY, "_log.warning", "_log.debug"),
    (REGISTRY, 'find_spec("triton") is None', 'find_spec("triton") == 0'),
    (LAUNCH, "elif all(grid)", "else"),
    (LAUNCH, "_compiled, _target = before", "_target = before[1]"),
    (LAUNCH, "    if _target is not None:\n        return _target\n", ""),
    (TUNING, "return _tried[op, case]", "return shortlist[0]"),
    (TUNING, "if found else shortlist[0]", "if found else shortlist[-1]"),
    (TUNING, ".get(op, {}).get(case)", ".get(op, {}).get('wide')"),
    (TUNING, "_tried, _asked = before", "_asked = before[1]"),
    (TUNING, '.replace("/", "_")', ""),
]
