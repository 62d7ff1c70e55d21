/** `score --rewards`: what the config's reward functions give for the last turn of each chat. Needs the tokenizer, no weights and no libtorch. */

import type { Config } from "../config/schema.ts";
import { Tokenizer } from "../data/tokenizer.ts";
import { fieldNamesOf, type ScoredGroup } from "../reward/batch.ts";
import { checkGoldOfRewards } from "../reward/gold.ts";
import { createRewards, startedWith } from "../reward/rewards.ts";
import type { Sample } from "../types.ts";
import { lastTurnIds } from "./last-turn.ts";
import { openOutput } from "./output.ts";

/** @throws ConfigError, DataError, RewardError as training would */
export async function scoreRewards(config: Config, chats: readonly Sample[], outputFile: string): Promise<void> {
  const firstLetter = config.compat.firstLetterReward;
  const samples = chats.map(withStatedGold);
  checkGoldOfRewards(config.rewards, samples, "--input", { firstLetter });
  const rewards = createRewards(config.rewards, { firstLetter });
  const tokenizer = await startedWith(rewards, () => Tokenizer.load(config.model.path));
  try {
    using output = openOutput(outputFile);
    const { batchSize } = config.eval;
    const fields = fieldNamesOf(samples);
    for (let start = 0; start < samples.length; start += batchSize) {
      const groups = samples.slice(start, start + batchSize).map((sample) => groupOf(sample, tokenizer));
      await rewards.score(groups, undefined, fields);
      for (const {
        prompt,
        rewards: [reward],
        rewardBreakdown,
        rewardNotes = {},
      } of groups) {
        const each = Object.entries(rewardBreakdown).map(([name, [value]]) => [name, value]);
        const columns = Object.entries(rewardNotes.columns ?? {}).map(([name, [value]]) => [name, value]);
        output.writeLine({
          id: prompt.sample.id,
          reward,
          reward_breakdown: Object.fromEntries(each),
          ...(rewardNotes.errors && { errors: Object.keys(rewardNotes.errors) }),
          ...(columns.length > 0 && { reward_columns: Object.fromEntries(columns) }),
        });
      }
    }
  } finally {
    await rewards.close();
  }
}

/**
 * The last turn is what is judged here, so it is no source of the gold answer, which a chat for SFT takes from its response where it has
 * no solution: every such turn would be right.
 */
function withStatedGold(chat: Sample): Sample {
  const { solution } = chat.fields;
  return { ...chat, solution: typeof solution === "string" ? solution : "" };
}

function groupOf(sample: Sample, tokenizer: Tokenizer): ScoredGroup {
  const completion = { ids: lastTurnIds(tokenizer, sample), text: sample.response ?? "", finish: "stop" as const };
  return { prompt: { sample }, completions: [completion], rewards: [], rewardBreakdown: {} };
}
