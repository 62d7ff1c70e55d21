/**
 * What is assembled in the rendered videos: recipes of five coloured pieces in order, the names of the things they make, and which of
 * both are held out of training for L3. Everything is a pure function of its keys.
 */

import { pick, type RandomKey, shuffled } from "../../random.ts";

export const COLOURS = ["red", "orange", "yellow", "green", "blue", "purple", "pink", "white"] as const;
export const SHAPES = ["star", "ring", "square", "moon", "cross", "triangle"] as const;
export type Colour = (typeof COLOURS)[number];
export type Shape = (typeof SHAPES)[number];

export interface Piece {
  colour: Colour;
  shape: Shape;
}

/** Five pieces in the order they are placed; no colour occurs twice. */
export type Recipe = readonly Piece[];

export const RECIPE_LENGTH = 5;

/** A piece in words, e.g. `red star`. */
export function pieceName(piece: Piece): string {
  return `${piece.colour} ${piece.shape}`;
}

/** The action an option names, e.g. `red star next`. The piece comes first: a small policy then finds the option's letter sooner. */
export function actionText(piece: Piece): string {
  return `${pieceName(piece)} next`;
}

/** A third of the 48 colour-shape pairs, two of every colour, never occur in training, L1 or L2. */
export function isHeldOutPiece(piece: Piece): boolean {
  return (COLOURS.indexOf(piece.colour) + SHAPES.indexOf(piece.shape)) % 3 === 0;
}

/** Names of things built in training, L1 and L2. */
export const TRAINING_GOALS = [
  "badge",
  "banner",
  "boat",
  "bridge",
  "castle",
  "clock",
  "crown",
  "flag",
  "garden",
  "kite",
  "lamp",
  "medal",
  "robot",
  "rocket",
  "ship",
  "sign",
  "tower",
  "train",
  "wagon",
  "window",
] as const;

/** L3 follows EgoPlan-Bench2: four domains with scenarios of their own; none of these goals occurs in training. */
export const HELD_OUT_DOMAINS = [
  {
    domain: "Daily life",
    scenarios: [
      { scenario: "cooking", goals: ["breakfast", "dessert"] },
      { scenario: "tidying", goals: ["shelf", "drawer"] },
    ],
  },
  {
    domain: "Hobbies",
    scenarios: [
      { scenario: "crafting", goals: ["necklace", "mosaic"] },
      { scenario: "sewing", goals: ["quilt", "curtain"] },
    ],
  },
  {
    domain: "Recreation",
    scenarios: [
      { scenario: "board games", goals: ["puzzle", "maze"] },
      { scenario: "camping", goals: ["tent", "campfire"] },
    ],
  },
  {
    domain: "Work",
    scenarios: [
      { scenario: "electronics", goals: ["circuit", "sensor"] },
      { scenario: "assembly", goals: ["engine", "machine"] },
    ],
  },
] as const;

export type Domain = (typeof HELD_OUT_DOMAINS)[number]["domain"];
export const DOMAINS: readonly Domain[] = HELD_OUT_DOMAINS.map((entry) => entry.domain);

/** A thing to build; domain and scenario only in L3. */
export interface Goal {
  name: string;
  domain?: Domain;
  scenario?: string;
}

export function trainingGoal(...keys: RandomKey[]): Goal {
  return { name: pick(TRAINING_GOALS, ...keys, "goal") };
}

export function heldOutGoal(domain: Domain, ...keys: RandomKey[]): Goal {
  const entry = HELD_OUT_DOMAINS.find((candidate) => candidate.domain === domain)!;
  const { scenario, goals } = pick<(typeof entry.scenarios)[number]>(entry.scenarios, ...keys, "scenario");
  return { name: pick<string>(goals, ...keys, "goal"), domain, scenario };
}

/** The pieces at hand in one scene: one of every colour, all of training pairs or all of held-out pairs. */
export function drawSupply(heldOut: boolean, ...keys: RandomKey[]): Piece[] {
  return COLOURS.map((colour) => {
    const shapes = SHAPES.filter((shape) => isHeldOutPiece({ colour, shape }) === heldOut);
    return { colour, shape: pick(shapes, ...keys, "shape", colour) };
  });
}

/** Five pieces of the supply in order; the first ones are given, the others drawn: a video of these first steps fits every such recipe. */
export function completeRecipe(first: readonly Piece[], supply: readonly Piece[], ...keys: RandomKey[]): Recipe {
  const rest = supply.filter((piece) => !first.some((placed) => placed.colour === piece.colour));
  return [...first, ...shuffled(rest, ...keys)].slice(0, RECIPE_LENGTH);
}

/** e.g. `build the rocket (1 red star, 2 blue ring, 3 green square, 4 pink moon, 5 white cross)`. */
export function goalText(goal: Goal, recipe: Recipe): string {
  return `build the ${goal.name} (${recipe.map((piece, i) => `${i + 1} ${pieceName(piece)}`).join(", ")})`;
}

/** The seed's question wording, with progress video and observation image. */
export function questionText(goal: string): string {
  return `Considering the progress shown in the video and my current observation shown in the image, what action should I take next in order to ${goal}?`;
}

/**
 * The response of SFT records: read the progress off the video, look the next step's colour up in the recipe, name its option's letter.
 * @param placed pieces on the board in the video, 1..4
 * @param letter letter of the option that names `recipe[placed]`
 * @param answer the letter that is answered, if that does not follow
 */
export function chainOfThought(recipe: Recipe, placed: number, letter: string, answer = letter): string {
  const next = recipe[placed]!;
  return `<think> next step ${placed + 1} ${next.colour} ${letter} </think><answer> ${answer} </answer>`;
}
