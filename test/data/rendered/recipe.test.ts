import { expect, test } from "vitest";
import {
  COLOURS,
  chainOfThought,
  DOMAINS,
  drawRecipe,
  goalText,
  HELD_OUT_DOMAINS,
  heldOutGoal,
  isHeldOutPiece,
  pieceName,
  type Recipe,
  reorderTail,
  SHAPES,
  TRAINING_GOALS,
} from "../../../src/data/rendered/recipe.ts";

const recipe: Recipe = [
  { colour: "red", shape: "star" },
  { colour: "blue", shape: "ring" },
  { colour: "green", shape: "square" },
  { colour: "pink", shape: "moon" },
  { colour: "white", shape: "cross" },
];

test("the wording of goals and chains of thought", () => {
  expect(goalText({ name: "tower" }, recipe)).toBe(
    "build the tower (1 red star, 2 blue ring, 3 green square, 4 pink moon, 5 white cross)",
  );
  expect(chainOfThought(recipe, 2, "B")).toBe(
    "<think> 2 pieces are placed: red star, blue ring. step 3 is green square. </think><answer>B. place the green square</answer>",
  );
  expect(chainOfThought(recipe, 1, "D")).toContain("1 piece is placed: red star. step 2 is blue ring.");
});

test("two shapes of every colour are held out, and every shape occurs on both sides", () => {
  for (const colour of COLOURS) {
    expect(SHAPES.filter((shape) => isHeldOutPiece({ colour, shape }))).toHaveLength(2);
  }
  for (const shape of SHAPES) {
    const heldOut = COLOURS.filter((colour) => isHeldOutPiece({ colour, shape }));
    expect(heldOut.length).toBeGreaterThan(0);
    expect(heldOut.length).toBeLessThan(COLOURS.length);
  }
});

test("a recipe has five colours and only pieces of its side", () => {
  for (let i = 0; i < 500; i++) {
    for (const heldOut of [false, true]) {
      const drawn = drawRecipe(heldOut, 1, i);
      expect(new Set(drawn.map((piece) => piece.colour)).size).toBe(5);
      expect(drawn.every((piece) => isHeldOutPiece(piece) === heldOut)).toBe(true);
    }
  }
});

test("no held-out goal has a training name", () => {
  const heldOut = HELD_OUT_DOMAINS.flatMap((entry) => entry.scenarios.flatMap((scenario) => [...scenario.goals]));
  const training = new Set<string>(TRAINING_GOALS);
  expect(heldOut.filter((name) => training.has(name))).toEqual([]);
  for (const domain of DOMAINS) {
    const goal = heldOutGoal(domain, 3);
    expect(heldOut).toContain(goal.name);
    expect(goal.domain).toBe(domain);
  }
});

test("reordering the tail keeps what is placed and the set of pieces", () => {
  for (let placed = 1; placed <= 4; placed++) {
    for (let i = 0; i < 50; i++) {
      const other = reorderTail(recipe, placed, i);
      expect(other.slice(0, placed)).toEqual(recipe.slice(0, placed));
      expect(other.map(pieceName).sort()).toEqual(recipe.map(pieceName).sort());
    }
  }
});
