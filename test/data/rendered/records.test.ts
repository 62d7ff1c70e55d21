/** The questions without their videos: what the text alone gives away (nothing), and what is held out of training. */

import { expect, test } from "vitest";
import { isHeldOutPiece, pieceName } from "../../../src/data/rendered/recipe.ts";
import {
  planVideo,
  type Split,
  sftRecord,
  trainingRecord,
  validationRecord,
} from "../../../src/data/rendered/records.ts";
import { handAt } from "../../../src/data/rendered/timeline.ts";

const RECORDS = 4800; // one standard deviation of a 25 % rate is 0.6 points
const plans = (split: Split, count = RECORDS) => Array.from({ length: count }, (_, i) => planVideo(11, split, i));

/** A question as a reader sees it who knows the text only. */
interface TextOnly {
  options: { name: string; position: number; step: number }[]; // in the order shown; step: place in the recipe, 2..5
  goal: string;
  domain: string;
  gold: number;
}

function textOnly(split: Split): TextOnly[] {
  return plans(split).map((video) => {
    const record = validationRecord(video);
    const steps = [...record.task_goal.matchAll(/(\d) (\w+ \w+)/g)].map((match) => match[2]!);
    const options = [record.choice_a, record.choice_b, record.choice_c, record.choice_d].map((choice, position) => {
      const name = choice.replace(" next", "");
      return { name, position, step: steps.indexOf(name) + 1 };
    });
    const goal = /build the (.*?) \(/.exec(record.task_goal)![1]!;
    return { options, goal, domain: record.domain ?? "", gold: "ABCD".indexOf(record.golden_choice_idx) };
  });
}

const train = textOnly("train");
const levels = { L1: textOnly("L1"), L2: textOnly("L2"), L3: textOnly("L3") };

const LEVELS = ["L1", "L2", "L3"] as const;

const rate = (questions: TextOnly[], guess: (question: TextOnly) => number) =>
  questions.filter((question) => guess(question) === question.gold).length / questions.length;

test.each(LEVELS)("%s: every rule on positions is right in 25 percent (+-3)", (level) => {
  const questions = levels[level];
  for (let n = 0; n < 4; n++) {
    expect(Math.abs(rate(questions, () => n) - 0.25)).toBeLessThan(0.03);
    const byStep = (question: TextOnly) => question.options.findIndex((option) => option.step === n + 2);
    expect(Math.abs(rate(questions, byStep) - 0.25)).toBeLessThan(0.03);
  }
});

test.each(LEVELS)("%s: a classifier of the text fitted on train is right in 25 percent (+-3)", (level) => {
  const questions = levels[level];
  const features = (question: TextOnly, i: number) => {
    const { name, position, step } = question.options[i]!;
    const [colour, shape] = name.split(" ");
    const first = question.options[0]!.step;
    return [
      `position ${position}`,
      `step ${step}`,
      `position ${position} step ${step}`,
      `colour ${colour}`,
      `shape ${shape}`,
      `goal ${question.goal} step ${step}`,
      `goal ${question.goal} position ${position}`,
      `colour ${colour} step ${step}`,
      `shape ${shape} step ${step}`,
      `first option is step ${first} and this ${step}`,
    ];
  };
  const weights = fitClassifier(train, features);
  expect(Math.abs(rate(questions, (question) => argmax(scores(question, features, weights))) - 0.25)).toBeLessThan(
    0.03,
  );
});

test("the same classifier finds a leak where there is one", () => {
  const leaky = (questions: TextOnly[]) =>
    questions.map((question) => ({ ...question, goal: `goal ${question.options[question.gold]!.step}` }));
  const features = (question: TextOnly, i: number) => [`${question.goal} step ${question.options[i]!.step}`];
  const weights = fitClassifier(leaky(train), features);
  expect(rate(leaky(levels.L1), (question) => argmax(scores(question, features, weights)))).toBeGreaterThan(0.95);
});

test("training questions: the answer's place in the recipe is uniform, the other three are the negatives", () => {
  const counts = [0, 0, 0, 0];
  const changed = new Set<number>();
  for (const video of plans("train", 1200)) {
    const first = trainingRecord(video, 0, 4);
    for (let number = 0; number < 4; number++) {
      const record = trainingRecord(video, number, 4);
      expect(record.sample_id).toBe(video.index * 4 + number);
      const steps = [...record.task_goal.matchAll(/(\d) (\w+ \w+)/g)].map((match) => `${match[2]} next`);
      counts[steps.indexOf(record.answer) - 1]!++;
      expect([record.answer, ...record.negative_answers].sort()).toEqual(steps.slice(1).sort());
      expect(record.task_progress_metadata.map((step) => step.narration_text)).toEqual(
        steps.slice(0, video.clip.placed),
      );
      if (record.answer !== first.answer) changed.add(video.index);
    }
  }
  for (const count of counts) expect(Math.abs(count / 4800 - 0.25)).toBeLessThan(0.03);
  expect(changed.size).toBeGreaterThan(700); // the same video with another answer: a text cannot be learnt by heart
});

test("the supply on the observation image holds every recipe asked about, and no more of one than of another", () => {
  for (const video of plans("train", 400)) {
    expect(video.supply).toHaveLength(8);
    const supply = video.supply.map(pieceName);
    for (let number = 0; number < 3; number++) {
      const steps = [...trainingRecord(video, number, 3).task_goal.matchAll(/\d (\w+ \w+)/g)].map((match) => match[1]!);
      expect(supply).toEqual(expect.arrayContaining(steps));
    }
  }
});

test("neither the clip's length nor the last still second tells the count; the hand is out of view at the end", () => {
  const lengths: number[][] = [[], [], [], []];
  for (const split of ["train", "L2", "L3"] as const) {
    for (const video of plans(split, 400)) {
      const { environment, placements, placed, frameCount } = video.clip;
      if (split === "train") lengths[placed - 1]!.push(frameCount);
      expect(placements).toHaveLength(placed);
      const last = (frameCount - 1) / environment.fps;
      for (let time = last - 0.6; time <= last; time += 0.02) expect(handAt(environment, placements, time)).toBeNull();
      for (const [i, placement] of placements.entries()) {
        expect(placement.enter).toBeGreaterThan(i === 0 ? 0.19 : placements[i - 1]!.leave - 1e-9);
        expect(handAt(environment, placements, placement.release - 1e-6)?.carries).toBe(i);
      }
    }
  }
  const means = lengths.map((values) => values.reduce((sum, value) => sum + value, 0) / values.length);
  for (const mean of means) expect(Math.abs(mean - 50)).toBeLessThan(2);
});

test("L3 uses goals, pieces and recipes that training never does", () => {
  const training = plans("train", 1500);
  const heldOut = plans("L3", 1500);
  const goals = new Set(training.map((video) => video.goal.name));
  const recipes = new Set(training.map((video) => video.clip.recipe.map(pieceName).join()));
  for (const video of heldOut) {
    expect(goals.has(video.goal.name)).toBe(false);
    expect(recipes.has(video.clip.recipe.map(pieceName).join())).toBe(false);
    expect(video.clip.recipe.every(isHeldOutPiece)).toBe(true);
    expect(validationRecord(video)).toMatchObject({ domain: expect.any(String), scenario: expect.any(String) });
  }
  for (const video of [...training, ...plans("L1", 300), ...plans("L2", 300)]) {
    expect(video.clip.recipe.some(isHeldOutPiece)).toBe(false);
  }
});

test("held-out levels share no recipe order with training by chance of the same key", () => {
  const recipes = new Set(plans("train").map((video) => video.clip.recipe.map(pieceName).join()));
  const shared = plans("L1").filter((video) => recipes.has(video.clip.recipe.map(pieceName).join()));
  expect(shared.length / RECORDS).toBeLessThan(0.01); // 6,720 x 4^5 recipes: almost none twice
});

test("records are a function of the seed", () => {
  const lines = (seed: number) =>
    [0, 1, 2, 3].map((i) => {
      const video = planVideo(seed, "train", i);
      return JSON.stringify([
        trainingRecord(video, 1, 4),
        sftRecord(video, 1),
        validationRecord(planVideo(seed, "L3", i)),
      ]);
    });
  expect(lines(5)).toEqual(lines(5));
  expect(lines(5)).not.toEqual(lines(6));
});

test("an SFT record asks the training question and answers with the letter of its own options", () => {
  for (const video of plans("train", 200)) {
    for (const number of [0, 1, 7]) {
      const record = sftRecord(video, number);
      const text = record.prompt[0]!.content.find((part) => part.type === "text")!.text;
      const [, letter] = /<answer> ([A-D]) <\/answer>$/.exec(record.response)!;
      const { question, answer } = trainingRecord(video, number, 8);
      expect(text).toContain(question);
      expect(text).toContain(`\n${letter}. ${answer}\n`);
      expect(record.response).toContain(`step ${video.clip.placed + 1} ${answer.split(" ")[0]} ${letter}`);
    }
  }
});

test("the wanted share of chains of thought guesses the step, and answers accordingly", () => {
  const videos = plans("train", 400);
  const step = (text: string) => Number(/next step (\d)/.exec(text)![1]);
  const wrong = videos.filter(
    (video) => step(sftRecord(video, 0, { guesses: 0.4 }).response) !== video.clip.placed + 1,
  ).length;
  expect(wrong / videos.length).toBeGreaterThan(0.22); // three of four guesses are wrong: 30 %
  expect(wrong / videos.length).toBeLessThan(0.38);
  for (const video of videos) {
    const { response, prompt } = sftRecord(video, 0, { guesses: 0.4 });
    const text = prompt[0]!.content.find((part) => part.type === "text")!.text;
    const [, number, colour, letter] = /next step (\d) (\w+) (\w)/.exec(response)!;
    expect(text).toContain(`${number} ${colour} `);
    expect(text).toMatch(new RegExp(`\\n${letter}\\. ${colour} `));
  }
});

test("the wanted share of chains of thought slips: the answer is what it was, and the reasoning names another option", () => {
  const videos = plans("train", 400);
  const parts = (text: string) => /next step (\d) (\w+) (\w) <\/think><answer> (\w) /.exec(text)!.slice(1);
  let slipped = 0;
  for (const video of videos) {
    const plain = parts(sftRecord(video, 0, { guesses: 0.4 }).response);
    const [step, colour, said, answer] = parts(sftRecord(video, 0, { guesses: 0.4, slips: 0.5 }).response);
    expect(answer).toBe(plain[3]);
    if (said === answer) continue;
    slipped++;
    expect(step).not.toBe(plain[0]);
    expect(Number(step)).toBeGreaterThan(1);
    expect(Number(step)).toBeLessThan(6);
    const text = sftRecord(video, 0).prompt[0]!.content.find((part) => part.type === "text")!.text;
    expect(text).toContain(`\n${said}. ${colour} `);
  }
  expect(slipped / videos.length).toBeGreaterThan(0.42);
  expect(slipped / videos.length).toBeLessThan(0.58);
});

type Features = (question: TextOnly, option: number) => string[];

/** Conditional logit over the four options, by stochastic gradient descent. */
function fitClassifier(questions: TextOnly[], features: Features): Map<string, number> {
  const weights = new Map<string, number>();
  for (let epoch = 0; epoch < 3; epoch++) {
    for (const question of questions) {
      const raw = scores(question, features, weights);
      const total = raw.reduce((sum, score) => sum + Math.exp(score), 0);
      for (let i = 0; i < 4; i++) {
        const gradient = (i === question.gold ? 1 : 0) - Math.exp(raw[i]!) / total;
        for (const name of features(question, i)) weights.set(name, (weights.get(name) ?? 0) + 0.05 * gradient);
      }
    }
  }
  return weights;
}

function scores(question: TextOnly, features: Features, weights: Map<string, number>): number[] {
  return [0, 1, 2, 3].map((i) => features(question, i).reduce((sum, name) => sum + (weights.get(name) ?? 0), 0));
}

function argmax(values: number[]): number {
  return values.indexOf(Math.max(...values));
}
