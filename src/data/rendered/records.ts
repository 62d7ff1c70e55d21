/**
 * The questions: every video of a split with its records in the layout of SEED-Bench-R1's JSONL files, as a pure function of
 * (seed, split, index).
 *
 * All four options are pieces 2 to 5 of the recipe named in the question and the number of pieces placed is uniform over 1 to 4, so
 * that neither the text nor the observation image tells which is next: only the video does.
 */

import { type RandomKey, randomInt, shuffled, uniform } from "../../random.ts";
import { letteredOptions, letterOf, seedPrompt } from "../question.ts";
import { type Environment, type EnvironmentName, elsewhere, studio, workshop } from "./environment.ts";
import {
  actionText,
  chainOfThought,
  completeRecipe,
  DOMAINS,
  drawSupply,
  type Goal,
  goalText,
  heldOutGoal,
  type Piece,
  questionText,
  type Recipe,
  trainingGoal,
} from "./recipe.ts";
import type { Clip } from "./scene.ts";
import { schedule } from "./timeline.ts";

export type Split = "train" | "L1" | "L2" | "L3";

/** One video with its observation image, ready to render. */
export interface PlannedVideo {
  split: Split;
  index: number;
  clip: Clip;
  supply: readonly Piece[]; // on the tray of the observation image: what recipes about this video are made of
  source: EnvironmentName; // the folder of its media
  videoName: string;
  imageName: string;
  goal: Goal;
  keys: readonly RandomKey[];
}

/** The fields all records of SEED-Bench-R1 share. */
interface RecordBase {
  sample_id: number | string;
  task_goal: string;
  question: string;
  answer: string;
  task_start_frame: number;
  current_observation_frame: number;
  task_progress_metadata: { narration_text: string; start_frame: number; stop_frame: number }[];
  video_id: string;
  video_source: string;
  video_basename: string;
  current_observation_basename: string;
}

export interface TrainingRecord extends RecordBase {
  negative_answers: string[]; // the three other options
}

export interface ValidationRecord extends RecordBase {
  choice_a: string;
  choice_b: string;
  choice_c: string;
  choice_d: string;
  golden_choice_idx: string; // "A".."D"
  domain?: string; // L3
  scenario?: string; // L3
}

/** A chat with media paths relative to the data set's folder, and the response to learn. */
export interface SftRecord {
  sample_id: string;
  prompt: {
    role: "user";
    content: ({ type: "video"; video: string } | { type: "image"; image: string } | { type: "text"; text: string })[];
  }[];
  response: string;
}

/** Plans video `index` of a split. In every four videos of a split each number of placed pieces occurs once. */
export function planVideo(seed: number, split: Split, index: number): PlannedVideo {
  const keys: RandomKey[] = [seed, split, index];
  const block = Math.floor(index / 4);
  const placed = shuffled([1, 2, 3, 4], seed, split, "placed", block)[index % 4]!;
  const domain = shuffled(DOMAINS, seed, split, "domain", block)[index % 4]!;
  const supply = drawSupply(split === "L3", ...keys, "supply");
  const recipe = completeRecipe([], supply, ...keys, "recipe");
  const environment: Environment =
    split === "L3"
      ? elsewhere(domain, ...keys, "environment")
      : split === "L2"
        ? studio(...keys, "environment")
        : workshop(...keys, "environment");
  const name = `${split}-${String(index).padStart(5, "0")}`;
  return {
    split,
    index,
    clip: {
      environment,
      recipe,
      placed,
      placements: schedule(environment, placed, ...keys, "schedule"),
      frameCount: Math.round(environment.seconds * environment.fps),
      keys: [...keys, "clip"],
    },
    supply,
    source: environment.name,
    videoName: `${name}.mp4`,
    imageName: `${name}.png`,
    goal: split === "L3" ? heldOutGoal(domain, ...keys, "goal") : trainingGoal(...keys, "goal"),
    keys,
  };
}

/**
 * Question `number` about a training video. From the second on, the steps not yet done are others and the goal has another name: the
 * video fits as well, the answer changes.
 */
export function trainingRecord(video: PlannedVideo, number: number, questionsPerVideo: number): TrainingRecord {
  const { recipe, goal } = trainingQuestion(video, number);
  const answer = recipe[video.clip.placed]!;
  const negatives = shuffled(
    recipe.slice(1).filter((piece) => piece !== answer),
    ...video.keys,
    "negatives",
    number,
  );
  const { answer: text, ...rest } = recordBase(video, recipe, goal, video.index * questionsPerVideo + number);
  return { ...rest, answer: text, negative_answers: negatives.map(actionText) };
}

/** The question about a video of L1, L2 or L3. */
export function validationRecord(video: PlannedVideo): ValidationRecord {
  const { recipe, placed } = video.clip;
  const options = shuffled(recipe.slice(1), ...video.keys, "options");
  const id = video.split === "L3" ? `${uuid(...video.keys, "uuid")}_${video.index}` : video.index;
  const base = recordBase(video, recipe, video.goal, id);
  return {
    ...base,
    choice_a: actionText(options[0]!),
    choice_b: actionText(options[1]!),
    choice_c: actionText(options[2]!),
    choice_d: actionText(options[3]!),
    golden_choice_idx: letterOf(options.indexOf(recipe[placed]!)),
    ...(video.goal.domain && { domain: video.goal.domain, scenario: video.goal.scenario }),
  };
}

/**
 * Training question `number` about a video, with a chain of thought. There are as many as one likes. In a share of them, `guesses`, the step
 * is drawn at random and the answer follows from it: such records keep a policy from being sure of what it learnt by heart. In a share,
 * `slips`, the reasoning names another option than the one that is answered.
 */
export function sftRecord(video: PlannedVideo, number: number, { guesses = 0, slips = 0 } = {}): SftRecord {
  const { recipe, goal } = trainingQuestion(video, number);
  const guessed = uniform(...video.keys, "guess", number) < guesses;
  const placed = guessed ? 1 + randomInt(4, ...video.keys, "guessed", number) : video.clip.placed;
  const options = shuffled(recipe.slice(1), ...video.keys, "sft options", number);
  const letterAt = (step: number) => letterOf(options.indexOf(recipe[step]!));
  const slipped = uniform(...video.keys, "slip", number) < slips;
  const said = slipped ? 1 + ((placed + randomInt(3, ...video.keys, "slipped", number)) % 4) : placed;
  return {
    sample_id: `${video.index}-${number}`,
    prompt: [
      {
        role: "user",
        content: [
          { type: "video", video: `videos/${video.source}/${video.videoName}` },
          { type: "image", image: `images/${video.source}/${video.imageName}` },
          {
            type: "text",
            text: seedPrompt(questionText(goalText(goal, recipe)), letteredOptions(options.map(actionText))),
          },
        ],
      },
    ],
    response: chainOfThought(recipe, said, letterAt(said), letterAt(placed)),
  };
}

function trainingQuestion(video: PlannedVideo, number: number): { recipe: Recipe; goal: Goal } {
  if (number === 0) return { recipe: video.clip.recipe, goal: video.goal };
  return {
    recipe: completeRecipe(video.clip.recipe.slice(0, video.clip.placed), video.supply, ...video.keys, "tail", number),
    goal: trainingGoal(...video.keys, "goal", number),
  };
}

function recordBase(video: PlannedVideo, recipe: Recipe, goal: Goal, id: number | string): RecordBase {
  const { clip } = video;
  const goalWords = goalText(goal, recipe);
  const frame = (seconds: number) => Math.round(seconds * clip.environment.fps);
  return {
    sample_id: id,
    task_goal: goalWords,
    question: questionText(goalWords),
    answer: actionText(recipe[clip.placed]!),
    task_start_frame: 0,
    current_observation_frame: clip.frameCount - 1,
    task_progress_metadata: clip.placements.map((placement) => ({
      narration_text: actionText(recipe[placement.slot]!),
      start_frame: frame(placement.enter),
      stop_frame: frame(placement.leave),
    })),
    video_id: `${video.split}-${video.index}`,
    video_source: video.source,
    video_basename: video.videoName,
    current_observation_basename: video.imageName,
  };
}

/** 128 random bits in the usual notation. */
function uuid(...keys: RandomKey[]): string {
  const hex = [0, 1, 2, 3].map((word) =>
    Math.floor(uniform(...keys, word) * 2 ** 32)
      .toString(16)
      .padStart(8, "0"),
  );
  return hex.join("").replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}
