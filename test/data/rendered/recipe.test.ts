import { expect, test } from "vitest";
import {
  actionText,
  COLOURS,
  chainOfThought,
  completeRecipe,
  DOMAINS,
  drawSupply,
  goalText,
  HELD_OUT_DOMAINS,
  heldOutGoal,
  isHeldOutPiece,
  pieceName,
  type Recipe,
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
  expect(actionText(recipe[2]!)).toBe("green square next");
  expect(chainOfThought(recipe, 2, "B")).toBe("<think> next step 3 green B </think><answer> B </answer>");
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
      const supply = drawSupply(heldOut, 1, i);
      expect(supply.map((piece) => piece.colour)).toEqual([...COLOURS]);
      const drawn = completeRecipe([], supply, 2, i);
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

test("a completed recipe keeps what is placed and takes the rest from the supply", () => {
  const supply = [...recipe, { colour: "orange", shape: "moon" }, { colour: "yellow", shape: "star" }] as const;
  for (let placed = 1; placed <= 4; placed++) {
    const next = new Set<string>();
    for (let i = 0; i < 100; i++) {
      const other = completeRecipe(recipe.slice(0, placed), supply, i);
      expect(other).toHaveLength(5);
      expect(other.slice(0, placed)).toEqual(recipe.slice(0, placed));
      expect(new Set(other.map((piece) => piece.colour)).size).toBe(5);
      expect(supply.map(pieceName)).toEqual(expect.arrayContaining(other.map(pieceName)));
      next.add(pieceName(other[placed]!));
    }
    expect(next.size).toBe(supply.length - placed); // every piece at hand comes next in some recipe
  }
});
