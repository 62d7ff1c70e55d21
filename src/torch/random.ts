/** Seeded generators of libtorch, for initial weights and noise. Draws that must not depend on order use src/random.ts instead. */
import { addon } from "./addon.ts";
import { type Device, deviceCode } from "./dtype.ts";
import { typedError } from "./native-error.ts";
import { Tensor } from "./tensor.ts";

/** One stream of random numbers on one device. Pass it as `generator` to randn, rand and the like. */
export class Generator implements Disposable {
  readonly device: Device;
  /** For dispatch.ts. */
  readonly generatorHandle: number;

  /** @param seed a non-negative integer up to 2^53 */
  constructor(seed: number, device: Device = "cpu") {
    this.device = device;
    const code = deviceCode(device);
    try {
      this.generatorHandle = addon.generatorNew(seed, code);
    } catch (cause) {
      throw typedError("Generator", `${seed}, "${device}"`, [], cause);
    }
  }

  /** The state, uint8 [n] on the CPU; with setState the stream goes on from there. */
  state(): Tensor {
    try {
      return new Tensor(addon.generatorGetState(this.generatorHandle));
    } catch (cause) {
      throw typedError("Generator.state", "", [], cause);
    }
  }

  setState(state: Tensor): void {
    try {
      addon.generatorSetState(this.generatorHandle, state.handle);
    } catch (cause) {
      throw typedError("Generator.setState", String(state), [], cause);
    }
  }

  free(): void {
    addon.generatorFree(this.generatorHandle);
  }

  [Symbol.dispose](): void {
    this.free();
  }
}
