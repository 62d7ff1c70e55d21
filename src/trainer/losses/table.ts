/** The losses by the names of trainer.loss. What each is published with besides its terms: LOSS_DEFAULTS in config/algorithm.ts. */

import type { Config } from "../../config/schema.ts";
import { bnpo } from "./bnpo.ts";
import { cispo } from "./cispo.ts";
import { dapo } from "./dapo.ts";
import { drGrpo } from "./dr-grpo.ts";
import { grpo } from "./grpo.ts";
import { gspo } from "./gspo.ts";
import type { Loss } from "./loss.ts";
import { sapo } from "./sapo.ts";

export const LOSSES: Readonly<Record<Config["trainer"]["loss"], Loss>> = {
  grpo,
  bnpo,
  dr_grpo: drGrpo,
  dapo,
  gspo,
  cispo,
  sapo,
};
