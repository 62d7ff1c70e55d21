import { describe, test } from "vitest";
import { checkAttentionGradients, checkGradients } from "./gradients-check.ts";

describe("gradients added to those that are there, against autograd's", () => {
  test("float64", () => checkGradients("cpu", "float64", 1e-12));
  test("float32", () => checkGradients("cpu", "float32", 1e-5));
  test("attention", () => checkAttentionGradients("cpu", "float64", 1e-14));
});
