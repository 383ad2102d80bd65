import importlib.util

from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import DescribeParameters, SetParameters
from vismem_msgs.srv import Query

from vismem.ros.parameters import SETTINGS


def test_transitions_over_the_wire(peer, start, frames, tmp_path):
    node = start(autostart=False, path=tmp_path / "a.mem", fps=0.0, detect="none")
    assert peer.state("/vismem") == "unconfigured"
    assert not peer.change("/vismem", "activate")  # not from there
    assert peer.change("/vismem", "configure") and peer.state("/vismem") == "inactive"
    assert peer.call(Query, "/vismem/query", question="what happened?").success

    assert peer.change("/vismem", "activate") and peer.state("/vismem") == "active"
    images = peer.publisher(peer.raw(frames[0]).__class__, "image")
    peer.send(images, [peer.raw(frames[n]) for n in range(6)], rate=10)
    peer.until(lambda: peer.health("/vismem", "frames") == 6, "six frames")

    # Inactive: takes nothing more, answers still.
    assert peer.change("/vismem", "deactivate") and peer.state("/vismem") == "inactive"
    peer.until(lambda: not images.get_subscription_count(), "still subscribed")
    answer = peer.call(Query, "/vismem/query", question="when does the cat appear?")
    assert answer.success and not answer.abstained, answer

    assert peer.change("/vismem", "activate")
    peer.until(images.get_subscription_count, "not subscribed again")
    peer.send(images, [peer.raw(frames[n]) for n in range(3)], rate=10)
    peer.until(lambda: peer.health("/vismem", "frames") == 9, "nine frames")

    assert peer.change("/vismem", "deactivate") and peer.change("/vismem", "cleanup")
    assert peer.state("/vismem") == "unconfigured"
    assert (tmp_path / "a.mem/manifest.json").exists()
    assert peer.change("/vismem", "configure")  # goes on with what is there
    peer.until(lambda: peer.health("/vismem", "frames") == 9, "the memory is back")
    assert peer.change("/vismem", "inactive_shutdown") and peer.state("/vismem") == "finalized"
    assert node.stop() == 0


def _set(peer, name, value, kind, field):
    given = ParameterValue(type=kind, **{field: value})
    request = [Parameter(name=name, value=given)]
    (result,) = peer.call(SetParameters, "/vismem/set_parameters", parameters=request).results
    return result


def test_parameters_are_checked(peer, start):
    start(detect="none")
    peer.ready()
    double, text, whole = (
        getattr(ParameterType, f"PARAMETER_{kind}") for kind in ("DOUBLE", "STRING", "INTEGER")
    )
    assert not _set(peer, "fps", -1.0, double, "double_value").successful
    assert not _set(peer, "fps", float("nan"), double, "double_value").successful
    assert not _set(peer, "fps", "many", text, "string_value").successful
    refused = _set(peer, "policy", "hoard", text, "string_value")
    assert not refused.successful and "moments, flash" in refused.reason
    refused = _set(peer, "queue", 7, whole, "integer_value")
    assert not refused.successful and "clean it up first" in refused.reason
    refused = _set(peer, "budget", "much", text, "string_value")
    assert not refused.successful and "budget" in refused.reason
    assert _set(peer, "fps", 5.0, double, "double_value").successful
    assert _set(peer, "budget", "2MB", text, "string_value").successful
    peer.until(lambda: peer.health("/vismem", "budget") == 2_000_000, "the new budget")
    names = [setting.name for setting in SETTINGS]
    told = peer.call(DescribeParameters, "/vismem/describe_parameters", names=names).descriptors
    assert all(one.description for one in told)
    assert told[names.index("fps")].floating_point_range[0].to_value == 240


WRONG = [
    ({"fps": -3.0}, "fps"),
    ({"policy": "hoard"}, "policy must be one of moments"),
    ({"budget": "lots"}, "budget"),
    ({"detect": "off"}, "detect"),  # false in YAML
    ({"pose_source": "tf"}, "tf2_msgs cannot be imported"),
]


def test_a_node_that_cannot_start_says_why(start):
    with_tf = importlib.util.find_spec("tf2_msgs") is not None
    nodes = [
        (start(**{"detect": "none"} | given), said)
        for given, said in WRONG
        if not (with_tf and "pose_source" in given)
    ]
    for node, said in nodes:  # all at once, for starting takes seconds
        assert node.process.wait(120) != 0
        assert said in node.said and "Traceback" not in node.said, node.said
