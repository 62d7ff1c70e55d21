import { describe, expect, test } from "vitest";
import { parseFrameCrc } from "../../src/data/packets.ts";
import { MediaError } from "../../src/errors.ts";

const NO_PTS = "-9223372036854775808";

/** What `ffmpeg -f framecrc` writes: [pts, duration, flags] a packet, in decoding order. */
function frameCrc(timeBase: string, packets: readonly (readonly [number | string, number, number?])[]): string {
  const line = ([pts, duration, flags]: (typeof packets)[number]) =>
    `0, ${pts}, ${pts}, ${duration}, 100, 0x0cd01b7e${flags === undefined ? "" : `, F=0x${flags.toString(16)}`}`;
  return [`#tb 0: ${timeBase}`, "#dimensions 0: 96x64", "#sar 0: 4/3", ...packets.map(line), ""].join("\n");
}
const log = (container: string, fps: string) =>
  `Input #0, ${container}, from 'file:clip':\n    Stream #0:0: Video: h264 (High), yuv420p, 96x64, 30 kb/s, ${fps}, 30 tbr, 15360 tbn (default)\n`;
const parse = (text: string, fps = "30 fps", container = "matroska,webm") =>
  parseFrameCrc("clip", text, log(container, fps));

test("packets come in decoding order, frames are listed as they are shown", () => {
  const table = parse(
    frameCrc("1/10", [
      [0, 1],
      [3, 1, 0],
      [1, 1, 0],
      [2, 1, 0],
      [4, 1],
    ]),
    "10 fps",
  );
  expect(table).toMatchObject({ pts: [0, 1, 2, 3, 4], timeBase: { num: 1, den: 10 }, width: 96, height: 64 });
  expect(table.isKey).toEqual([true, false, false, false, true]);
  expect([table.hasTimes, table.averageFps, table.isMp4]).toEqual([true, 10, false]);
  expect(parse(frameCrc("1/10", [[0, 1]]), "10 fps", "mov,mp4,m4a,3gp,3g2,mj2").isMp4).toBe(true);
});

test("frames that an edit list hides (flag 4) are not counted", () => {
  const table = parse(
    frameCrc("1/10", [
      [-2, 1, 5],
      [-1, 1, 4],
      [0, 1, 0],
      [1, 1, 0],
    ]),
  );
  expect([table.pts, table.isKey]).toEqual([
    [0, 1],
    [false, false],
  ]);
});

test.each([
  [
    "a packet without one",
    [
      [0, 33],
      [NO_PTS, 33, 0],
      [66, 33, 0],
    ],
  ],
  [
    "the same one twice",
    [
      [0, 33],
      [33, 33, 0],
      [33, 33, 0],
    ],
  ],
] as [string, [number | string, number, number?][]][])("times cannot be relied on: %s", (_, packets) => {
  const table = parse(frameCrc("1/1000", packets));
  expect([table.hasTimes, table.pts.length, table.averageFps]).toEqual([false, 3, 30]);
});

describe("the average rate is the container's, refined by the times where they say the same", () => {
  const even = (count: number, ticks: number): [number, number][] =>
    Array.from({ length: count }, (_, i) => [i * ticks, ticks]);
  const milliseconds = (count: number, fps: number): [number, number][] =>
    Array.from({ length: count }, (_, i) => [Math.round((i * 1000) / fps), Math.floor(1000 / fps)]);
  test.each([
    ["exact ticks", "1/15360", even(150, 512), "30 fps", 30],
    ["NTSC in exact ticks", "1/30000", even(150, 1001), "29.97 fps", 30000 / 1001],
    ["24 in whole milliseconds", "1/1000", milliseconds(72, 24), "24 fps", 24],
    ["NTSC in whole milliseconds", "1/1000", milliseconds(72, 24000 / 1001), "23.98 fps", 24000 / 1001],
    ["half a frame a second", "1/1000", even(10, 2000), "0.50 fps", 0.5],
    // 100 frames in 3.9994 s: printed as 25, and not 25.
    ["not quite the printed rate", "1/10000", [...even(99, 400), [39600, 394]], "25 fps", 100 / 3.9994],
    ["a header that claims another rate is believed, as decord believes it", "1/1000", even(50, 54), "25 fps", 25],
    ["thousands", "1/90000", even(50, 90), "1k fps", 1000],
    ["no rate in the log", "1/1000", even(50, 50), "90k tbr", 20],
  ] as [string, string, [number, number][], string, number][])("%s", (_, timeBase, packets, fps, expected) => {
    expect(parse(frameCrc(timeBase, packets), fps).averageFps).toBeCloseTo(expected, 9);
  });
});

test("no video stream", () => {
  expect(() => parse("#tb 0: 1/44100\n#media_type 0: audio\n")).toThrow(MediaError);
});
