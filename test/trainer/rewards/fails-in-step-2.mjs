/** share-of-e.mjs until its second call, which fails where GROVE_TEST_FAILS is set: in one rank of several, say. */
import shareOfE from "./share-of-e.mjs";

let calls = 0;

export default function failsInStep2(args) {
  if (++calls === 2 && process.env.GROVE_TEST_FAILS) throw new Error("CUDA out of memory, or so");
  return shareOfE(args);
}
