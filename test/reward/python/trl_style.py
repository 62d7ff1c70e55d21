"""Reward functions as they are written for TRL, open-r1 and R1-V: what the bridge has to run unchanged."""

import asyncio
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction

print("printed while it is imported")


def accuracy_reward(completions, solution, **kwargs):
    """R1-V's: the first answer block against the solution's, by their first characters."""
    rewards = []
    for completion, gold in zip([one[0]["content"] for one in completions], solution):
        found = re.search(r"<answer>(.*?)</answer>", completion, re.DOTALL)
        said = found.group(1).strip() if found else ""
        wanted = re.search(r"<answer>(.*?)</answer>", gold).group(1).strip()
        rewards.append(1.0 if said[:1] == wanted[:1] else 0.0)
        if os.getenv("DEBUG_MODE") == "true":
            print(completion)
    return rewards


def format_reward(completions, **kwargs):
    pattern = r"<think>.*?</think>\s*<answer>.*?</answer>"
    return [1.0 if re.match(pattern, one[0]["content"], re.DOTALL) else 0.0 for one in completions]


def by_task(prompts, completions, task, **kwargs):
    """TRL's multi-task example: None where the task is another one."""
    return [len(c[0]["content"]) if t == "count" else None for c, t in zip(completions, task)]


def token_lengths(completion_ids, completions):
    """No **kwargs: it gets what it names."""
    return [float(len(ids)) for ids in completion_ids]


async def slow_judge(prompts, completions, log_extra=None, log_metric=None, trainer_state=None, **kwargs):
    async def one(completion):
        await asyncio.sleep(0.05 / (1 + len(completion[0]["content"])))
        return len(completion[0]["content"]) + trainer_state.global_step

    rewards = await asyncio.gather(*[one(completion) for completion in completions])
    log_extra("said", [completion[0]["content"] for completion in completions])
    log_extra("odd", [float("nan")] * len(completions))
    log_extra("short", [1])
    log_metric("mean_length", sum(rewards) / len(rewards))
    log_metric("mean_length", 2 + sum(rewards) / len(rewards))
    return rewards


def everything(**kwargs):
    """Compares what it is called with against what the test expects."""
    expected = {
        "prompts": [[{"role": "user", "content": "question s1"}]] * 2,
        "completions": [[{"role": "assistant", "content": "ab"}], [{"role": "assistant", "content": "x\u2028z"}]],
        "completion_ids": [[97, 98], [120, 8232, 122]],
        "solution": ["<answer>C</answer>"] * 2,
        "id": ["s1", "s1"],
        "finish_reason": ["stop", "stop"],
        "domain": ["kitchen"] * 2,
        "nested": [{"a": [1, None]}] * 2,
    }
    state = kwargs.pop("trainer_state")
    assert (state.global_step, state.max_steps, state.epoch, state.num_train_epochs) == (4, 10, 0.5, 2), state
    assert callable(kwargs.pop("log_extra")) and callable(kwargs.pop("log_metric"))
    assert kwargs == expected, kwargs
    return [1, 2]


class Scalar:
    """As numpy's and torch's: a number only if it is asked."""

    def __init__(self, value):
        self.value = value

    def __float__(self):
        return self.value


def numbers(completions, **kwargs):
    return (value for value in [True, 3, Scalar(0.5), Fraction(1, 4), None, math.nan, Scalar(math.nan)])


class Judge:
    def __call__(self, completions, **kwargs):
        return [7.0] * len(completions)


judge = Judge()


def chatty(completions, **kwargs):
    print("to stdout")
    os.write(1, b'{"rewards": [9, 9]}\n')
    subprocess.run(["echo", "from a child"])
    assert sys.stdin.read() == ""
    return [1.0] * len(completions)


def with_alarm(completions, **kwargs):
    """A time limit by signals, as math_verify sets one: only the main thread may."""
    assert threading.current_thread() is threading.main_thread()
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.alarm(0)
    return [1.0] * len(completions)


def broken(completions, **kwargs):
    return [kwargs["no_such_column"] for _ in completions]


def wants_gold(completions, gold_label):
    return [0.0] * len(completions)


async def broken_later(completions, **kwargs):
    await asyncio.sleep(0)
    raise ValueError("later")


def odd(completions, what, **kwargs):
    return {
        "infinite": [1.0, math.inf],
        "text": [1.0, "1"],
        "long": [1.0, 2.0, 3.0],
        "number": 1.0,
        "string": "ab",
        "mapping": {"a": 1, "b": 2},
        "nothing": None,
        "objects": [1.0, object],
    }[what[0]]


calls = 0


def end_at_first(completions, what, **kwargs):
    """Fails on its process's first call for the sample that says how; a later process has a file that says not to."""
    how, flag = what[0].split(" ")
    if os.path.exists(flag):
        return [5.0] * len(completions)
    open(flag, "w").close()
    if how == "exit":
        sys.exit(3)
    if how == "abort":
        print("last words", file=sys.stderr)
        os._exit(4)
    if how == "spin":
        while True:
            pass
    child = subprocess.Popen(["sleep", "1000"])
    with open(flag, "w") as file:
        file.write(str(child.pid))
    while True:
        time.sleep(1)


def count_calls(completions, **kwargs):
    global calls
    calls += 1
    return [float(calls)] * len(completions)


def write_pid(completions, what, **kwargs):
    with open(what[0], "w") as file:
        file.write(str(os.getpid()))
    if what[-1] == "wait":
        time.sleep(1000)
    return [0.0] * len(completions)
