/** Every test file must end with as many live tensors and bytes as it began with. Registered first, so it runs after all other hooks. */
import { afterAll, expect } from "vitest";
import { liveTensors } from "../../src/torch/scope.ts";

const before = liveTensors();

afterAll(() => {
  const after = liveTensors();
  expect(after, "tensors that the tests of this file left alive; wrap them in scope() or free them").toEqual(before);
});
