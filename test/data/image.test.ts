import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { inflateSync } from "node:zlib";
import sharp from "sharp";
import { afterAll, expect, test } from "vitest";
import { decodeImage } from "../../src/data/image.ts";
import { bytesOf, fixture, picture, temporaryFolder } from "./helpers.ts";

const folder = temporaryFolder();
afterAll(folder.remove);
const at = (name: string) => join(folder.path, name);
const raw = (width: number, height: number, channels: 1 | 2 | 3 | 4) => ({ raw: { width, height, channels } });

test.each(
  fixture("images.json").images as {
    name: string;
    mode: string;
    file: string;
    width: number;
    height: number;
    rgb: string;
  }[],
)("$name, which Pillow opens as $mode: level for level", async ({ name, file, width, height, rgb }) => {
  writeFileSync(at(name), bytesOf(file));
  const image = await decodeImage(at(name));
  const expected = inflateSync(bytesOf(rgb));
  expect([image.width, image.height]).toEqual([width, height]);
  const pixels = Array.from({ length: width * height }, (_, i) => i * 3);
  const apart = pixels.filter((i) => Buffer.compare(image.data.subarray(i, i + 3), expected.subarray(i, i + 3)) !== 0);
  if (name === "transparent.gif") {
    // The known departure: libvips forgets the colour under a transparent pixel.
    expect(apart.length).toBe(16);
    for (const i of apart) expect(Array.from(image.data.subarray(i, i + 3))).toEqual([0, 0, 0]);
  } else expect(apart).toEqual([]);
});

test("a lossless picture comes out level for level, also at an odd size", async () => {
  const pixels = picture(31, 45);
  await sharp(pixels, raw(45, 31, 3))
    .png()
    .toFile(at("plain.png"));
  const { width, height, data } = await decodeImage(at("plain.png"));
  expect([width, height]).toEqual([45, 31]);
  expect(Buffer.compare(data, pixels)).toBe(0);
});

test("RGBA lies over white, with PIL's rounding", async () => {
  const rgba = Uint8Array.from([200, 100, 0, 255, 200, 100, 0, 0, 200, 100, 0, 128, 10, 250, 77, 1]);
  await sharp(rgba, raw(4, 1, 4))
    .png()
    .toFile(at("alpha.png"));
  // Image.new("RGB", (4, 1), (255, 255, 255)).paste(image, mask=image.split()[3])
  expect(Array.from((await decodeImage(at("alpha.png"))).data)).toEqual([
    200, 100, 0, 255, 255, 255, 227, 177, 127, 254, 255, 254,
  ]);
});

test("grey becomes three equal channels", async () => {
  await sharp(Uint8Array.from([0, 77, 255]), raw(3, 1, 1))
    .toColourspace("b-w")
    .png()
    .toFile(at("grey.png"));
  expect(Array.from((await decodeImage(at("grey.png"))).data)).toEqual([0, 0, 0, 77, 77, 77, 255, 255, 255]);
});

test("the orientation tag is not applied, as in the seed", async () => {
  await sharp(picture(20, 30), raw(30, 20, 3))
    .jpeg()
    .withMetadata({ orientation: 6 })
    .toFile(at("turned.jpg"));
  const { width, height } = await decodeImage(at("turned.jpg"));
  expect([width, height]).toEqual([30, 20]);
});

test("missing and broken files are named", async () => {
  await expect(decodeImage(at("nowhere.png"))).rejects.toThrow(/nowhere\.png: no such file/);
  writeFileSync(at("broken.png"), "no picture");
  await expect(decodeImage(at("broken.png"))).rejects.toThrow(/broken\.png: cannot be decoded/);
  const whole = await sharp(picture(64, 64), raw(64, 64, 3))
    .png()
    .toBuffer();
  writeFileSync(at("cut.png"), whole.subarray(0, whole.length / 2));
  await expect(decodeImage(at("cut.png"))).rejects.toThrow(/cut\.png: cannot be decoded/);
});
