"""What is said of each Meta-World task: three phrases, two of them seen in training.

A sentence is a phrase in a frame. Demonstrations and evaluations draw one from the seen phrases
and frames for every start; ``+paraphrase`` draws from phrases and frames that were never trained
on. Some of those share their words with seen ones, others are synonyms.
"""

from __future__ import annotations

import numpy as np

from ebt_policy.errors import UserError

SEEN_FRAMES = ("{}", "please {}", "{} now", "robot, {}")
UNSEEN_FRAMES = ("could you {}", "now {} please", "the task is to {}")
# Seen, seen, unseen.
PHRASES: dict[str, tuple[str, str, str]] = {
    "assembly": (
        "put the ring on the peg", "assemble the ring and the peg", "fit the ring onto the peg"),
    "basketball": (
        "dunk the ball into the basket", "put the basketball in the hoop",
        "throw the ball through the hoop"),
    "bin-picking": (
        "move the object from one bin to the other", "pick it out of this bin into the other bin",
        "take the object over to the other bin"),
    "box-close": (
        "close the box with the lid", "put the cover on the box", "cover the box with its lid"),
    "button-press-topdown": (
        "press the button from above", "push the button down", "press down on the button"),
    "button-press-topdown-wall": (
        "press the button from above behind the wall", "push the button down past the wall",
        "reach over the wall and press down on the button"),
    "button-press": (
        "press the button on the front", "push the button in", "press in the front button"),
    "button-press-wall": (
        "press the button on the front behind the wall", "push the button in past the wall",
        "go around the wall and press in the button"),
    "coffee-button": (
        "press the coffee machine's button", "start the coffee machine", "make a coffee"),
    "coffee-pull": (
        "pull the mug away from the coffee machine", "take the mug out of the coffee machine",
        "get the mug back from the coffee machine"),
    "coffee-push": (
        "push the mug under the coffee machine", "slide the mug into the coffee machine",
        "put the mug below the coffee machine"),
    "dial-turn": ("turn the dial", "rotate the dial", "twist the dial around"),
    "disassemble": (
        "take the ring off the peg", "disassemble the ring and the peg",
        "lift the ring from the peg"),
    "door-close": ("close the door", "push the door shut", "shut the door"),
    "door-lock": ("lock the door", "turn the lock closed", "bolt the door"),
    "door-open": ("open the door", "pull the door open by its handle", "get the door open"),
    "door-unlock": ("unlock the door", "turn the lock open", "unbolt the door"),
    "drawer-close": ("close the drawer", "push the drawer shut", "shut the drawer"),
    "drawer-open": (
        "open the drawer", "pull the drawer out by its handle", "get the drawer open"),
    "faucet-close": ("close the faucet", "turn the tap off", "shut off the faucet"),
    "faucet-open": ("open the faucet", "turn the tap on", "let the faucet run"),
    "hammer": (
        "hammer the nail into the wall", "hit the nail with the hammer", "drive in the nail"),
    "hand-insert": (
        "put the object into the hole with the hand", "insert the hand into the hole",
        "reach into the hole with the object"),
    "handle-press-side": (
        "press the handle down from the side", "push the side handle down",
        "press down on the side handle"),
    "handle-press": ("press the handle down", "push the handle down", "press down on the handle"),
    "handle-pull-side": (
        "pull the handle up from the side", "raise the side handle", "pull up on the side handle"),
    "handle-pull": ("pull the handle up", "raise the handle", "pull up on the handle"),
    "lever-pull": ("pull the lever up", "raise the lever", "lift the lever"),
    "peg-insert-side": (
        "insert the peg into the hole", "put the peg in the hole at the side",
        "stick the peg into the side hole"),
    "peg-unplug-side": (
        "unplug the peg", "pull the peg out of the hole", "take the peg out"),
    "pick-out-of-hole": (
        "pick the puck out of the hole", "lift the puck from the hole",
        "take the puck out of its hole"),
    "pick-place-wall": (
        "pick up the puck and place it beyond the wall", "lift the puck over the wall to the goal",
        "carry the puck over the wall"),
    "pick-place": (
        "pick up the puck and place it at the goal", "lift the puck to the goal",
        "pick the puck up and carry it to the goal"),
    "plate-slide-back-side": (
        "slide the plate back from the side", "push the plate sideways out of the goal",
        "get the plate out of the goal sideways"),
    "plate-slide-back": (
        "slide the plate back", "pull the plate out of the goal", "get the plate back out"),
    "plate-slide-side": (
        "slide the plate in from the side", "push the plate sideways into the goal",
        "get the plate into the goal sideways"),
    "plate-slide": (
        "slide the plate in", "push the plate into the goal", "get the plate into the goal"),
    "push-back": (
        "push the puck back to the goal", "pull the puck towards the robot",
        "bring the puck back to the robot"),
    "push-wall": (
        "push the puck around the wall to the goal", "slide the puck past the wall",
        "move the puck along the table around the wall"),
    "push": (
        "push the puck to the goal", "slide the puck along the table to the goal",
        "move the puck over the table by pushing it"),
    "reach-wall": (
        "reach the goal beyond the wall", "move the hand past the wall to the goal",
        "bring the hand around the wall to the goal"),
    "reach": (
        "reach the goal", "move the hand to the goal", "bring the empty hand to the goal"),
    "shelf-place": (
        "place the cube on the shelf", "put the block onto the shelf",
        "set the cube down on the shelf"),
    "soccer": (
        "kick the ball into the goal", "score with the soccer ball", "shoot the ball at the goal"),
    "stick-pull": (
        "pull the box with the stick", "take the stick and pull the box back",
        "use the stick to pull the box"),
    "stick-push": (
        "push the box with the stick", "take the stick and push the box away",
        "use the stick to push the box"),
    "sweep-into": (
        "sweep the puck into the hole", "push the puck into the hole",
        "wipe the puck into the hole"),
    "sweep": (
        "sweep the puck off the table", "push the puck over the edge",
        "wipe the puck off the table"),
    "window-close": ("close the window", "slide the window shut", "shut the window"),
    "window-open": ("open the window", "slide the window open", "get the window open"),
}  # fmt: skip


def meaning(text: str) -> str:
    """The task that a sentence is of."""
    for task, phrases in PHRASES.items():
        for phrase in phrases:
            if text in [frame.format(phrase) for frame in (*SEEN_FRAMES, *UNSEEN_FRAMES)]:
                return task
    raise UserError(f"the sentence {text[:40]!r} is of no Meta-World task")


def sentence(task: str, seed: int, unseen: bool = False) -> str:
    """The sentence of a task for the start of a seed.

    Args:
        task: without Meta-World's version suffix, for instance ``drawer-open``.
        seed: of the start; the same has the same sentence.
        unseen: from the phrases and frames that are not trained on.
    """
    first, second, last = PHRASES[task]
    phrases, frames = ((last,), UNSEEN_FRAMES) if unseen else ((first, second), SEEN_FRAMES)
    random = np.random.default_rng([seed, 17])
    return str(random.choice(frames)).format(random.choice(phrases))
