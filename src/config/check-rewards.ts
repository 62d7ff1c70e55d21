/** What reward functions need of their knobs together. */

import { nearest } from "./nearest.ts";
import { BUILT_IN_REWARDS, type RewardFunctionConfig } from "./rewards.ts";

type Refuse = (wrong: boolean, knob: string, problem: string) => void;

/** Names of metrics beside `reward/<name>`; those of penalties begin with `penalty_`. */
const METRICS = /^(mean|std|zero_std_frac|penalty_.*)$/;

/** Whether a function of this name would write over a metric that is not its own. */
export function isMetricName(name: string, names: readonly string[]): boolean {
  return METRICS.test(name) || names.some((other) => name === `${other}_std` || name.startsWith(`${other}/`));
}

function meant(name: string): string {
  const close = nearest(name, BUILT_IN_REWARDS);
  const own = "a function of your own needs the path of a module, a python function or a url";
  return close === undefined ? `; ${own}` : `; did you mean ${close}? ${own[0]?.toUpperCase()}${own.slice(1)}`;
}

export function checkRewards(rewards: readonly RewardFunctionConfig[], refuse: Refuse): void {
  const names = rewards.map(({ name }) => name);
  rewards.forEach((reward, i) => {
    const { name, path, python, url, interpreter, call } = reward;
    const knob = (key: string) => `rewards.${i}.${key}`;
    const places = Object.entries({ path, python, url }).filter(([, place]) => place !== undefined);
    refuse(names.indexOf(name) !== i, knob("name"), `${name} is listed twice`);
    refuse(isMetricName(name, names), knob("name"), `reward/${name} is the name of another metric`);
    refuse(
      places.length === 0 && !BUILT_IN_REWARDS.includes(name),
      knob("path"),
      `${name} is not one of ${BUILT_IN_REWARDS.join(", ")}${meant(name)}`,
    );
    refuse(
      places.length > 1,
      knob(places[1]?.[0] ?? ""),
      `a function is in one place: ${places.map(([key]) => key).join(" or ")}, not both`,
    );
    refuse(
      python !== undefined && !/^.+:[\p{L}_][\p{L}\p{N}_.]*$/u.test(python),
      knob("python"),
      `${python} names no function: expected file.py:function or package.module:function`,
    );
    refuse(
      url !== undefined && !/^https?:\/\/[^/]+/.test(url),
      knob("url"),
      `${url} is no address of a server: expected http://host:port/function`,
    );
    refuse(interpreter !== undefined && python === undefined, knob("interpreter"), "only a python function has one");
    refuse(
      call === "completion" && path === undefined,
      knob("call"),
      "completion is for modules (path); other functions are called once for all completions",
    );
  });
  refuse(
    rewards.every((reward) => reward.weight === 0),
    "rewards",
    "every weight is 0: there is nothing to learn from",
  );
}
