/**
 * Renders the data set into a folder:
 *
 *   training.jsonl  training_with_cot.jsonl  training_solved.jsonl  training_with_slips.jsonl
 *   validation_L1.jsonl  validation_L2.jsonl  validation_L3.jsonl
 *   videos/<video_source>/*.mp4  images/<video_source>/*.png  manifest.json
 *
 * A file that is there is finished (each is renamed into place), so an interrupted call is taken up where it stopped, and a call with the
 * same options as a finished one returns at once.
 */

import { createHash } from "node:crypto";
import { mkdir, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import { encodePicture, encodeVideo } from "./encode.ts";
import { SCENE_HEIGHT, SCENE_WIDTH } from "./environment.ts";
import { type PlannedVideo, planVideo, type Split, sftRecord, trainingRecord, validationRecord } from "./records.ts";
import { renderClip, renderObservation } from "./scene.ts";

export interface RenderedOptions {
  seed: number;
  trainVideos: number;
  /** Training questions about each training video. */
  questionsPerVideo: number;
  /** Training videos that have questions with a chain of thought. */
  sftVideos: number;
  /** Share of those videos in which three or four pieces are placed, 0 to 1; the others show one or two. */
  sftLateShare: number;
  /** Share of the chains of thought, 0 to 1, that name a step at random: their author did not count. */
  sftGuessShare: number;
  /** Questions with a chain of thought, spread evenly over those videos. */
  sftRecords: number;
  L1: number;
  L2: number;
  L3: number;
}

export interface RenderProgress {
  done: number; // videos
  total: number;
}

/** Paths of what was made. */
export interface RenderedDataset {
  folder: string;
  training: string;
  sft: string;
  /** The questions of `training`, in its order, each with a chain of thought that is right: for SFT and GRPO on the same questions. */
  solved: string;
  /** Questions about the videos of `sft`; in half of the chains of thought the reasoning names another option than the answer. */
  slips: string;
  validation: { L1: string; L2: string; L3: string };
  /** Videos rendered by this call; 0 when all were there. */
  rendered: number;
}

/** Raise it with every change that alters a pixel, so that older folders are rendered anew. */
const MEDIA_VERSION = 3;
/** Raise it with every change that alters a record, so that the records of older folders are written anew. */
const RECORDS_VERSION = 4;
/** Share of the chains of thought of `slips` whose answer does not follow. */
const SLIPS = 0.5;
/** Videos in flight: while one is drawn here, others are being encoded by their ffmpeg. */
const IN_FLIGHT = 3;
const SPLITS = ["train", "L1", "L2", "L3"] as const;

interface Manifest {
  hash: string;
  /** Media made under another key are of no use. */
  mediaKey: string;
  complete: boolean;
  options: RenderedOptions;
}

/**
 * Makes the data set, or what is missing of it.
 * @throws MediaError when ffmpeg fails
 */
export async function renderDataset(
  folder: string,
  options: RenderedOptions,
  onProgress: (progress: RenderProgress) => void = () => {},
): Promise<RenderedDataset> {
  const root = path.resolve(folder);
  const dataset = datasetPaths(root);
  const manifestFile = path.join(root, "manifest.json");
  const manifest = newManifest(options);
  const before = await readManifest(manifestFile);
  const videos = planVideos(options);
  if (before !== null && before.mediaKey !== manifest.mediaKey) {
    await rm(path.join(root, "videos"), { recursive: true, force: true });
    await rm(path.join(root, "images"), { recursive: true, force: true });
  }
  const missing = before === null ? videos : await withoutFinished(root, videos);
  if (before?.hash === manifest.hash && before.complete && missing.length === 0) return { ...dataset, rendered: 0 };

  await makeFolders(root, videos);
  await writeWhole(manifestFile, JSON.stringify({ ...manifest, complete: false }, null, 2));
  await renderMissing(root, missing, videos.length, onProgress);
  await writeAnnotations(dataset, videos, options);
  await writeWhole(manifestFile, JSON.stringify(manifest, null, 2));
  return { ...dataset, rendered: missing.length };
}

/** Where the files of a data set lie. */
export function datasetPaths(folder: string): Omit<RenderedDataset, "rendered"> {
  const file = (name: string) => path.join(folder, `${name}.jsonl`);
  const validation = {
    L1: file("validation_L1"),
    L2: file("validation_L2"),
    L3: file("validation_L3"),
  };
  return {
    folder,
    training: file("training"),
    sft: file("training_with_cot"),
    solved: file("training_solved"),
    slips: file("training_with_slips"),
    validation,
  };
}

/** Every video of the data set, in order. */
export function planVideos(options: RenderedOptions): PlannedVideo[] {
  const counts: Record<Split, number> = { train: options.trainVideos, L1: options.L1, L2: options.L2, L3: options.L3 };
  return SPLITS.flatMap((split) =>
    Array.from({ length: counts[split] }, (_, index) => planVideo(options.seed, split, index)),
  );
}

async function renderMissing(
  root: string,
  missing: readonly PlannedVideo[],
  total: number,
  onProgress: (progress: RenderProgress) => void,
): Promise<void> {
  let next = 0;
  let done = total - missing.length;
  onProgress({ done, total });
  const lane = async () => {
    while (next < missing.length) {
      try {
        await renderVideo(root, missing[next++]!);
      } catch (cause) {
        next = missing.length; // the other lanes stop after their current video
        throw cause;
      }
      onProgress({ done: ++done, total });
    }
  };
  await Promise.all(Array.from({ length: IN_FLIGHT }, lane));
}

async function renderVideo(root: string, video: PlannedVideo): Promise<void> {
  const { clip, source } = video;
  const picture = renderObservation(clip.environment, video.supply, ...video.keys, "observation");
  const pictureFile = path.join(root, "images", source, video.imageName);
  const pictureWritten = encodePicture(pictureFile, picture, SCENE_WIDTH, SCENE_HEIGHT);
  const videoFile = path.join(root, "videos", source, video.videoName);
  const videoWritten = encodeVideo(videoFile, renderClip(clip), SCENE_WIDTH, SCENE_HEIGHT, clip.environment.fps);
  await Promise.all([pictureWritten, videoWritten]);
}

async function writeAnnotations(
  dataset: Omit<RenderedDataset, "rendered">,
  videos: readonly PlannedVideo[],
  options: RenderedOptions,
): Promise<void> {
  const train = videos.filter((video) => video.split === "train");
  const per = options.questionsPerVideo;
  // The first question of every video, then the second of every video, ...: a prefix of the file covers as many videos as it can.
  const questions = Array.from({ length: per }, (_, number) => train.map((video) => ({ video, number }))).flat();
  const lines = (records: readonly object[]) => records.map((record) => `${JSON.stringify(record)}\n`).join("");
  await writeWhole(dataset.training, lines(questions.map(({ video, number }) => trainingRecord(video, number, per))));
  await writeWhole(dataset.solved, lines(questions.map(({ video, number }) => sftRecord(video, number))));
  const taught = taughtVideos(train, options);
  const sft = Array.from({ length: options.sftRecords }, (_, i) =>
    sftRecord(taught[i % taught.length]!, Math.floor(i / taught.length), { guesses: options.sftGuessShare }),
  );
  await writeWhole(dataset.sft, lines(sft));
  const chances = { guesses: options.sftGuessShare, slips: SLIPS };
  const slips = Array.from({ length: per }, (_, number) =>
    taught.map((video) => sftRecord(video, number, chances)),
  ).flat();
  await writeWhole(dataset.slips, lines(slips));
  for (const level of ["L1", "L2", "L3"] as const) {
    const records = videos.filter((video) => video.split === level).map(validationRecord);
    await writeWhole(dataset.validation[level], lines(records));
  }
}

/** The videos with chains of thought: the first ones of each kind, then, if one kind runs out, the first ones left. */
export function taughtVideos(train: readonly PlannedVideo[], options: RenderedOptions): PlannedVideo[] {
  const numLate = Math.round(options.sftVideos * options.sftLateShare);
  const isLate = (video: PlannedVideo) => video.clip.placed > 2;
  const wanted = [
    ...train.filter((video) => !isLate(video)).slice(0, options.sftVideos - numLate),
    ...train.filter(isLate).slice(0, numLate),
  ];
  return [...new Set([...wanted, ...train])].slice(0, options.sftVideos);
}

async function makeFolders(root: string, videos: readonly PlannedVideo[]): Promise<void> {
  for (const source of new Set(videos.map((video) => video.source))) {
    await mkdir(path.join(root, "videos", source), { recursive: true });
    await mkdir(path.join(root, "images", source), { recursive: true });
  }
}

async function withoutFinished(root: string, videos: readonly PlannedVideo[]): Promise<PlannedVideo[]> {
  const present = new Set<string>();
  for (const kind of ["videos", "images"]) {
    for (const source of new Set(videos.map((video) => video.source))) {
      const names = await readdir(path.join(root, kind, source)).catch(() => []);
      for (const name of names) present.add(`${source}/${name}`);
    }
  }
  return videos.filter(
    (video) =>
      !(present.has(`${video.source}/${video.videoName}`) && present.has(`${video.source}/${video.imageName}`)),
  );
}

function newManifest(options: RenderedOptions): Manifest {
  const { seed, trainVideos, questionsPerVideo, sftVideos, sftLateShare, sftGuessShare, sftRecords, L1, L2, L3 } =
    options;
  const ordered: RenderedOptions = {
    seed,
    trainVideos,
    questionsPerVideo,
    sftVideos,
    sftLateShare,
    sftGuessShare,
    sftRecords,
    L1,
    L2,
    L3,
  };
  const hash = createHash("sha256")
    .update(JSON.stringify([MEDIA_VERSION, RECORDS_VERSION, ordered]))
    .digest("hex");
  return { hash, mediaKey: `version ${MEDIA_VERSION}, seed ${seed}`, complete: true, options: ordered };
}

/** The manifest, or null where there is none that can be read: then everything is rendered anew. */
async function readManifest(file: string): Promise<Manifest | null> {
  try {
    return JSON.parse(await readFile(file, "utf8")) as Manifest;
  } catch {
    return null;
  }
}

async function writeWhole(file: string, text: string): Promise<void> {
  await writeFile(`${file}.part`, text);
  await rename(`${file}.part`, file);
}
