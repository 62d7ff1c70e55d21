"""Reads the named frames of a video with decord, or with PyAV in decord's way: to the key frame before each wanted frame unless decoding on
gets there, then forward. For video.ts.

    python3 video_reference.py                       prints name and version of what is installed
    python3 video_reference.py clip.mp4 "[0, 10]"    reads the frames and prints wall-clock and processor seconds as JSON
"""

import json, resource, sys, time
try:
    import decord
    name = "decord " + decord.__version__
except ImportError:
    import av
    decord, name = None, "PyAV " + av.__version__
if len(sys.argv) == 1:
    print(name)
    sys.exit()
file, indices = sys.argv[1], json.loads(sys.argv[2])
def cpu():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
def read():
    if decord:
        return decord.VideoReader(file).get_batch(indices).asnumpy()
    frames = []
    with av.open(file) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.pts is not None]
        times = sorted(pts for pts, _ in packets)
        keys = sorted(pts for pts, key in packets if key)
        decoded, key_at = None, None
        for index in indices:
            key = max(k for k in keys if k <= times[index])
            if key != key_at:
                container.seek(key, stream=stream)
                decoded, key_at = container.decode(stream), key
            frames.append(next(f for f in decoded if f.pts == times[index]).to_ndarray(format="rgb24"))
    return frames
before, start = cpu(), time.perf_counter()
frames = read()
print(json.dumps({"wallSeconds": time.perf_counter() - start, "cpuSeconds": cpu() - before, "frames": len(frames)}))
