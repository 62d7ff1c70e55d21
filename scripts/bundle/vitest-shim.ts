/**
 * Stands in for the package vitest inside a bundle, where vitest itself (with Vite and its native parts) would be too large: vitest's own
 * runner and expect, and nothing else. What a test file of ours may import from "vitest" is what is exported here.
 */

import { chai, GLOBAL_EXPECT, JestAsymmetricMatchers, JestChaiExpect, JestExtend, setState } from "@vitest/expect";

export {
  afterAll,
  afterEach,
  beforeAll,
  beforeEach,
  describe,
  it,
  onTestFailed,
  onTestFinished,
  startTests,
  suite,
  test,
} from "@vitest/runner";

chai.use(JestExtend);
chai.use(JestChaiExpect);
chai.use(JestAsymmetricMatchers);

const base = (value: unknown, message?: string) => chai.expect(value, message);
export const expect = Object.assign(base, chai.expect) as typeof chai.expect;
Object.assign(globalThis, { [GLOBAL_EXPECT]: expect });
setState({ assertionCalls: 0, isExpectingAssertions: false, expectedAssertionsNumber: null } as never, expect as never);
