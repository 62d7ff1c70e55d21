/**
 * A small software rasteriser: antialiased shapes as signed distance functions, drawn onto RGB bytes through a camera.
 *
 * A shape is a function of scene coordinates that gives the distance to its outline, negative inside; a pixel's coverage follows from
 * the distance at its centre, which antialiases every shape in the same way at any zoom and angle.
 */

export type Rgb = readonly [r: number, g: number, b: number]; // 0..255

/** Signed distance in scene units to the outline of a shape, with an upright box that contains it. */
export interface Outline {
  distance: (x: number, y: number) => number;
  centre: readonly [x: number, y: number];
  extent: readonly [x: number, y: number]; // half sizes of the box
}

/** Scene to pixels: rotate about the scene's centre, zoom, shift. */
export interface Camera {
  zoom: number;
  angle: number; // radians
  shift: readonly [x: number, y: number]; // pixels
}

export const STILL_CAMERA: Camera = { zoom: 1, angle: 0, shift: [0, 0] };

/** An RGB image, 3 bytes a pixel, rows from the top, seen through a camera. Pixel (i, j) has its centre at (i + 0.5, j + 0.5). */
export class Canvas {
  readonly pixels: Uint8Array;
  readonly width: number;
  readonly height: number;
  readonly camera: Camera;
  private readonly cos: number;
  private readonly sin: number;

  constructor(width: number, height: number, camera: Camera = STILL_CAMERA) {
    this.width = width;
    this.height = height;
    this.camera = camera;
    this.cos = Math.cos(camera.angle);
    this.sin = Math.sin(camera.angle);
    this.pixels = new Uint8Array(width * height * 3);
  }

  /** Pixel coordinates of a scene point. */
  toPixel(x: number, y: number): [number, number] {
    const { zoom, shift } = this.camera;
    const dx = x - this.width / 2;
    const dy = y - this.height / 2;
    return [
      this.width / 2 + zoom * (this.cos * dx - this.sin * dy) + shift[0],
      this.height / 2 + zoom * (this.sin * dx + this.cos * dy) + shift[1],
    ];
  }

  /** Draws a filled shape. `opacity` in [0, 1]; `feather` widens the antialiased edge (scene units) for soft shadows. */
  draw(outline: Outline, colour: Rgb, opacity = 1, feather = 0): void {
    const { pixels, width, height, camera } = this;
    const [centreX, centreY] = this.toPixel(outline.centre[0], outline.centre[1]);
    const [cos, sin] = [Math.abs(this.cos), Math.abs(this.sin)];
    const [a, b] = [outline.extent[0] + feather, outline.extent[1] + feather];
    const reachX = (cos * a + sin * b) * camera.zoom + 1;
    const reachY = (sin * a + cos * b) * camera.zoom + 1;
    const left = Math.max(0, Math.floor(centreX - reachX));
    const right = Math.min(width - 1, Math.ceil(centreX + reachX));
    const top = Math.max(0, Math.floor(centreY - reachY));
    const bottom = Math.min(height - 1, Math.ceil(centreY + reachY));
    const stepX = this.cos / camera.zoom;
    const stepY = -this.sin / camera.zoom;
    const softness = 1 / (1 / camera.zoom + feather);
    for (let j = top; j <= bottom; j++) {
      let [x, y] = this.toScene(left + 0.5, j + 0.5);
      let at = (j * width + left) * 3;
      for (let i = left; i <= right; i++, at += 3, x += stepX, y += stepY) {
        const covered = 0.5 - outline.distance(x, y) * softness;
        if (covered <= 0) continue;
        const alpha = opacity * (covered < 1 ? covered : 1);
        pixels[at] = blend(pixels[at]!, colour[0], alpha);
        pixels[at + 1] = blend(pixels[at + 1]!, colour[1], alpha);
        pixels[at + 2] = blend(pixels[at + 2]!, colour[2], alpha);
      }
    }
  }

  /** Sets every pixel from its scene coordinates. `paint` writes one colour (0..255, clamped and rounded here) into its third argument. */
  paint(paint: (x: number, y: number, out: Float64Array) => void): void {
    const out = new Float64Array(3);
    let at = 0;
    for (let j = 0; j < this.height; j++) {
      let [x, y] = this.toScene(0.5, j + 0.5);
      for (let i = 0; i < this.width; i++, x += this.cos / this.camera.zoom, y -= this.sin / this.camera.zoom) {
        paint(x, y, out);
        for (let c = 0; c < 3; c++) this.pixels[at++] = Math.min(255, Math.max(0, Math.round(out[c]!)));
      }
    }
  }

  private toScene(px: number, py: number): [number, number] {
    const { zoom, shift } = this.camera;
    const dx = (px - this.width / 2 - shift[0]) / zoom;
    const dy = (py - this.height / 2 - shift[1]) / zoom;
    return [this.width / 2 + this.cos * dx + this.sin * dy, this.height / 2 - this.sin * dx + this.cos * dy];
  }
}

function blend(below: number, above: number, alpha: number): number {
  return Math.round(below + (above - below) * alpha);
}

export function circle(x: number, y: number, radius: number): Outline {
  return { distance: (px, py) => length(px - x, py - y) - radius, centre: [x, y], extent: [radius, radius] };
}

/** @param radius outer radius @param band width of the band */
export function ring(x: number, y: number, radius: number, band: number): Outline {
  const middle = radius - band / 2;
  return {
    distance: (px, py) => Math.abs(length(px - x, py - y) - middle) - band / 2,
    centre: [x, y],
    extent: [radius, radius],
  };
}

/** A rectangle of half sizes (a, b), turned by `angle`, its corners rounded by `corner`. */
export function box(x: number, y: number, a: number, b: number, angle = 0, corner = 0): Outline {
  const cos = Math.cos(angle);
  const sin = Math.sin(angle);
  return {
    distance: (px, py) => {
      const u = cos * (px - x) + sin * (py - y);
      const v = cos * (py - y) - sin * (px - x);
      return boxDistance(u, v, a - corner, b - corner) - corner;
    },
    centre: [x, y],
    extent: [length(a, b), length(a, b)],
  };
}

function boxDistance(u: number, v: number, a: number, b: number): number {
  const dx = Math.abs(u) - a;
  const dy = Math.abs(v) - b;
  return length(Math.max(dx, 0), Math.max(dy, 0)) + Math.min(Math.max(dx, dy), 0);
}

/** Two crossing bars of length 2a and width 2b. */
export function cross(x: number, y: number, a: number, b: number, angle = 0): Outline {
  const first = box(x, y, a, b, angle);
  const second = box(x, y, b, a, angle);
  return {
    distance: (px, py) => Math.min(first.distance(px, py), second.distance(px, py)),
    centre: [x, y],
    extent: [length(a, b), length(a, b)],
  };
}

/** A disc with a bite: the lit part of a waxing moon. */
export function crescent(x: number, y: number, radius: number, angle = 0): Outline {
  const bite = radius * 0.8;
  const bx = x + radius * 0.5 * Math.cos(angle);
  const by = y + radius * 0.5 * Math.sin(angle);
  return {
    distance: (px, py) => Math.max(length(px - x, py - y) - radius, bite - length(px - bx, py - by)),
    centre: [x, y],
    extent: [radius, radius],
  };
}

/** A thick line with round ends. */
export function capsule(x0: number, y0: number, x1: number, y1: number, radius: number): Outline {
  const dx = x1 - x0;
  const dy = y1 - y0;
  const squared = dx * dx + dy * dy || 1;
  return {
    distance: (px, py) => {
      const t = Math.min(1, Math.max(0, ((px - x0) * dx + (py - y0) * dy) / squared));
      return length(px - x0 - t * dx, py - y0 - t * dy) - radius;
    },
    centre: [(x0 + x1) / 2, (y0 + y1) / 2],
    extent: [Math.abs(dx) / 2 + radius, Math.abs(dy) / 2 + radius],
  };
}

/** Exact within half a pixel for the mild ellipses drawn here. */
export function ellipse(x: number, y: number, a: number, b: number, angle = 0): Outline {
  const cos = Math.cos(angle);
  const sin = Math.sin(angle);
  return {
    distance: (px, py) => {
      const u = cos * (px - x) + sin * (py - y);
      const v = cos * (py - y) - sin * (px - x);
      const inside = length(u / a, v / b);
      const slope = length(u / (a * a), v / (b * b));
      return slope === 0 ? -Math.min(a, b) : (inside * (inside - 1)) / slope;
    },
    centre: [x, y],
    extent: [Math.max(a, b), Math.max(a, b)],
  };
}

/** A closed polygon, convex or not. `points` are [x, y] corners in order. */
export function polygon(points: readonly (readonly [number, number])[]): Outline {
  const centre = [mean(points.map((p) => p[0])), mean(points.map((p) => p[1]))] as const;
  const extent = [0, 1].map((axis) => Math.max(...points.map((p) => Math.abs(p[axis]! - centre[axis]!))));
  return {
    distance: (px, py) => {
      let nearest = Infinity;
      let inside = false;
      for (let i = 0, j = points.length - 1; i < points.length; j = i++) {
        const [ax, ay] = points[j]!;
        const [bx, by] = points[i]!;
        const ex = bx - ax;
        const ey = by - ay;
        const t = Math.min(1, Math.max(0, ((px - ax) * ex + (py - ay) * ey) / (ex * ex + ey * ey)));
        nearest = Math.min(nearest, (px - ax - t * ex) ** 2 + (py - ay - t * ey) ** 2);
        if (ay > py !== by > py && px < ax + ((py - ay) / ey) * ex) inside = !inside;
      }
      return inside ? -Math.sqrt(nearest) : Math.sqrt(nearest);
    },
    centre,
    extent: [extent[0]!, extent[1]!],
  };
}

/** A five-pointed star, first point up when angle is 0. */
export function star(x: number, y: number, radius: number, angle = 0): Outline {
  return polygon(spokes(x, y, 10, (i) => (i % 2 === 0 ? radius : radius * 0.45), angle));
}

/** An equilateral triangle, first corner up when angle is 0. */
export function triangle(x: number, y: number, radius: number, angle = 0): Outline {
  return polygon(spokes(x, y, 3, () => radius, angle));
}

function spokes(x: number, y: number, count: number, radius: (i: number) => number, angle: number) {
  return Array.from({ length: count }, (_, i) => {
    const direction = angle - Math.PI / 2 + (2 * Math.PI * i) / count;
    return [x + radius(i) * Math.cos(direction), y + radius(i) * Math.sin(direction)] as const;
  });
}

/** Math.hypot without its guards against overflow, which cost ten times as much. */
function length(x: number, y: number): number {
  return Math.sqrt(x * x + y * y);
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
