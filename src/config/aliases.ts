/**
 * What our knobs are called elsewhere, for docs/config.md and for the hint after an unknown knob. `trl`: fields of GRPOConfig and
 * TrainingArguments, which SEED-Bench-R1's scripts use as flags too; `seed`: names only that project has; `verl`: its Hydra paths.
 */
export const aliases: Readonly<Record<string, { trl?: string; verl?: string; seed?: string }>> = {
  seed: { trl: "seed", verl: "data.seed" },
  dtype: { trl: "torch_dtype", verl: "actor_rollout_ref.rollout.dtype" },
  runDir: { trl: "output_dir", verl: "trainer.default_local_dir" },
  "model.path": { trl: "model_name_or_path", verl: "actor_rollout_ref.model.path" },
  "model.freezeVision": { seed: "freeze_visual_encoder" },
  "model.recompute": { trl: "gradient_checkpointing", verl: "actor_rollout_ref.model.enable_gradient_checkpointing" },
  "data.train[].file": { seed: "jsonl_path", verl: "data.train_files" },
  "data.train[].mediaRoot": { seed: "data_root_dir" },
  "data.eval.<name>.file": { verl: "data.val_files" },
  "data.fps": { seed: "FPS" },
  "data.minFrames": { seed: "FPS_MIN_FRAMES" },
  "data.maxFrames": { seed: "FPS_MAX_FRAMES" },
  "data.minPixels": { seed: "min_pixels" },
  "data.maxPixels": { seed: "max_pixels" },
  "data.resizedHeight": { seed: "resized_height" },
  "data.resizedWidth": { seed: "resized_width" },
  "data.maxPromptTokens": { trl: "max_prompt_length", verl: "data.max_prompt_length" },
  "rollout.groupSize": { trl: "num_generations", verl: "actor_rollout_ref.rollout.n" },
  "rollout.maxNewTokens": { trl: "max_completion_length", verl: "data.max_response_length" },
  "rollout.temperature": { trl: "temperature", verl: "actor_rollout_ref.rollout.temperature" },
  "rollout.topK": { trl: "top_k", verl: "actor_rollout_ref.rollout.top_k" },
  "rollout.topP": { trl: "top_p", verl: "actor_rollout_ref.rollout.top_p" },
  "rollout.maxConcurrent": { verl: "actor_rollout_ref.rollout.max_num_seqs" },
  rewards: { trl: "reward_funcs" },
  "rewards[].path": { verl: "custom_reward_function.path" },
  "rewards[].weight": { trl: "reward_weights" },
  "trainer.steps": { trl: "max_steps", verl: "trainer.total_training_steps" },
  "trainer.epochs": { trl: "num_train_epochs", verl: "trainer.total_epochs" },
  "trainer.questionsPerStep": { verl: "data.train_batch_size" },
  "trainer.iterations": { trl: "num_iterations", verl: "actor_rollout_ref.actor.ppo_epochs" },
  "trainer.klCoef": { trl: "beta", verl: "actor_rollout_ref.actor.kl_loss_coef" },
  "trainer.epsLow": { trl: "epsilon", verl: "actor_rollout_ref.actor.clip_ratio_low" },
  "trainer.epsHigh": { trl: "epsilon_high", verl: "actor_rollout_ref.actor.clip_ratio_high" },
  "trainer.lossAggregation": { trl: "loss_type", verl: "actor_rollout_ref.actor.loss_agg_mode" },
  "trainer.tokensPerPack": { verl: "actor_rollout_ref.actor.ppo_max_token_len_per_gpu" },
  "trainer.saveEvery": { trl: "save_steps", verl: "trainer.save_freq" },
  "trainer.keepLast": { trl: "save_total_limit", verl: "trainer.max_actor_ckpt_to_keep" },
  "trainer.evalEvery": { trl: "eval_steps", verl: "trainer.test_freq" },
  "optimizer.learningRate": { trl: "learning_rate", verl: "actor_rollout_ref.actor.optim.lr" },
  "optimizer.schedule": { trl: "lr_scheduler_type" },
  "optimizer.warmupFraction": { trl: "warmup_ratio", verl: "actor_rollout_ref.actor.optim.lr_warmup_steps_ratio" },
  "optimizer.beta1": { trl: "adam_beta1" },
  "optimizer.beta2": { trl: "adam_beta2" },
  "optimizer.eps": { trl: "adam_epsilon" },
  "optimizer.weightDecay": { trl: "weight_decay", verl: "actor_rollout_ref.actor.optim.weight_decay" },
  "optimizer.maxGradNorm": { trl: "max_grad_norm", verl: "actor_rollout_ref.actor.grad_clip" },
  "optimizer.offload": { verl: "actor_rollout_ref.actor.fsdp_config.optimizer_offload" },
  "eval.temperature": { verl: "actor_rollout_ref.rollout.val_kwargs.temperature" },
  "eval.topK": { verl: "actor_rollout_ref.rollout.val_kwargs.top_k" },
  "eval.topP": { verl: "actor_rollout_ref.rollout.val_kwargs.top_p" },
};

/** Our knob for a name used elsewhere (its full name or the last part of it); undefined when there is none. */
export function knobCalled(foreign: string): string | undefined {
  const last = foreign.split(".").at(-1);
  const entries = Object.entries(aliases);
  const full = entries.find(([, names]) => Object.values(names).includes(foreign));
  const byLast = entries.find(([, names]) => Object.values(names).some((name) => name.split(".").at(-1) === last));
  return (full ?? byLast)?.[0];
}
