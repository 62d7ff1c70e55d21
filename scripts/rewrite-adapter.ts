/** Reads an adapter and writes it again. Usage: npx tsx scripts/rewrite-adapter.ts <model folder> <adapter folder> <new folder> */

import path from "node:path";
import { adapterContent, loadAdapter } from "../src/model/peft.ts";
import { readConfig } from "../src/model/qwen2vl/config.ts";
import { saveFolder } from "../src/model/weights.ts";

const [model, from, to] = process.argv.slice(2) as [string, string, string];
using adapter = loadAdapter(from, readConfig(model), { device: "cpu", dtype: "float32" });
saveFolder(to, { ...adapterContent(adapter, path.basename(model)), copies: [] });
