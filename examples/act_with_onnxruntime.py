"""Act with an exported policy: NumPy and onnxruntime, no PyTorch.

ebt-policy export runs/ebt --out policy.onnx
python examples/act_with_onnxruntime.py policy.onnx
"""

import json
import sys
import time
from collections import deque

import numpy as np
import onnxruntime


class OnnxPolicy:
    """One robot: call ``action`` once per control step, ``reset`` at the start of an episode."""

    def __init__(self, path: str, threads: int = 1, seed: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        properties = self.session.get_modelmeta().custom_metadata_map
        self.about = json.loads(properties["ebt_policy"])
        # Images are uint8, all else is float32.
        self.types = {
            given.name: np.uint8 if given.type == "tensor(uint8)" else np.float32
            for given in self.session.get_inputs()
        }
        self.random = np.random.default_rng(seed)
        self.reset()

    def reset(self) -> None:
        self.window: deque = deque(maxlen=self.about["observation_steps"])
        self.queue: deque = deque()

    def action(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """The next action (A,), from each stream's newest value, in the demonstrations' units."""
        self.window.append(observation)
        if not self.queue:
            first = [self.window[0]] * (self.about["observation_steps"] - len(self.window))
            steps = [*first, *self.window]
            inputs = {
                name: np.stack([step[name] for step in steps])[None].astype(self.types[name])
                for name in self.about["streams"]
            }
            for name, shape in self.about["draws"].items():
                inputs[name] = self.random.standard_normal(shape, dtype=np.float32)
            self.queue.extend(self.session.run(["actions"], inputs)[0][0])
        return self.queue.popleft()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python act_with_onnxruntime.py POLICY.onnx")
    policy = OnnxPolicy(sys.argv[1])
    still = {name: np.zeros(shape[2:]) for name, shape in policy.about["streams"].items()}
    took = []
    for _ in range(20):
        policy.reset()
        began = time.perf_counter()
        action = policy.action(still)
        took.append(1e3 * (time.perf_counter() - began))
    print(f"action {np.round(action, 3)}, {np.median(took):.2f} ms a chunk")
