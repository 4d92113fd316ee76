"""A ROS 2 node that moves an arm as a policy server says: rclpy, NumPy and ebt_policy.client.

ebt-policy serve runs/arm --limits limits.json --budget-ms 80
python examples/ros2_node.py --ros-args -p "joints:=[shoulder, elbow, wrist]" -p rate:=30.0 \
    -p "cameras:=[observation.images.front=/camera/image_raw]"

It reads /joint_states and cameras (rgb8), and publishes position targets to ros2_control's
forward_position_controller, which holds the last one: without news nothing moves. Units are those
of the demonstrations. An episode begins with the node, and again by
`ros2 service call /ebt_policy/reset std_srvs/srv/Trigger`.
"""

import time

import numpy as np
import rclpy
from rclpy.node import Node
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import Trigger

from ebt_policy.client import PolicyClient
from ebt_policy.errors import UserError

STALE = 0.5  # seconds after which an observation is too old to act upon
PATIENCE = 2.0  # seconds that one action may take before the node says so and tries again


class PolicyNode(Node):
    """Observes, asks, commands; at every tick all of it, or nothing."""

    def __init__(self):
        super().__init__("ebt_policy")
        self.declare_parameter("joints", rclpy.Parameter.Type.STRING_ARRAY)
        self.joints = self.get_parameter("joints").value
        self.state_key = self.declare_parameter("state", "observation.state").value
        host = self.declare_parameter("host", "127.0.0.1").value
        port = self.declare_parameter("port", 8000).value
        rate = self.declare_parameter("rate", 30.0).value
        self.client = PolicyClient(host, port, patience=PATIENCE)
        self.newest = {}  # stream -> (when it came, its value)
        self.create_subscription(JointState, "joint_states", self.see_joints, 1)
        for camera in self.declare_parameter("cameras", [""]).value:
            if camera:
                key, topic = camera.split("=")
                self.create_subscription(
                    Image, topic, lambda image, key=key: self.see_image(key, image), 1
                )
        self.commands = self.create_publisher(
            Float64MultiArray, "forward_position_controller/commands", 1
        )
        self.create_service(Trigger, "~/reset", self.reset)
        self.create_timer(1 / rate, self.tick)

    def see_joints(self, state):
        place = {name: i for i, name in enumerate(state.name)}
        if all(joint in place for joint in self.joints):
            positions = [state.position[place[joint]] for joint in self.joints]
            self.newest[self.state_key] = time.monotonic(), np.array(positions, np.float32)

    def see_image(self, key, image):
        rows = np.frombuffer(image.data, np.uint8).reshape(image.height, image.step)
        pixels = rows[:, : 3 * image.width].reshape(image.height, image.width, 3)
        self.newest[key] = time.monotonic(), pixels

    def reset(self, request, response):
        self.client.reset()
        response.success = True
        return response

    def tick(self):
        now = time.monotonic()
        for key in self.client.metadata["observation"]:
            if key not in self.newest or now - self.newest[key][0] > STALE:
                self.get_logger().warning(f"no news of {key}", throttle_duration_sec=1.0)
                return
        observation = {key: value for key, (_, value) in self.newest.items()}
        try:
            # The first action of an episode is limited from where the joints are.
            last = {"last_action": observation[self.state_key]}
            action = self.client.select_action({**observation, **last})
        except (ConnectionError, UserError) as error:
            self.get_logger().error(str(error), throttle_duration_sec=1.0)
            return
        if self.client.reply.get("alarm"):
            what = "is off its demonstrations" if self.client.reply["num_steps"] else "holds"
            self.get_logger().warning(f"the policy {what}", throttle_duration_sec=1.0)
        self.commands.publish(Float64MultiArray(data=action.tolist()))


if __name__ == "__main__":
    rclpy.init()
    rclpy.spin(PolicyNode())
